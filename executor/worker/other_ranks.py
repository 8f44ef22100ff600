"""The processes of a run on several devices of this machine: the trainer is rank 0 and starts the others.

torchrun and `accelerate launch` can start them instead, also on several machines; they set the same environment. We do
not use them here, because they hide how a rank ended, they put the ranks into sessions of their own, where the niceness
no longer counts against the service's, and after a SIGKILL of the launcher its ranks live on.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time

from ..store.run import TrainerExit
from .command import start_process, when_the_parent_ends

GRACE_SECONDS = 5.0  # the time that the failure of one rank takes to reach the others
POLL_SECONDS = 0.05
_SAYS_LEAST = (TrainerExit.CRASHED, TrainerExit.INTERRUPTED)

_log = logging.getLogger(__name__)


def start_other_ranks(count: int, *arguments: str) -> "OtherRanks":
    """Start one process for each further device of a run, and make this process rank 0.

    Start nothing if a launcher started this process as one of several. The first thread of this process calls this,
    because the others end with the thread that has started them.

    Args: count: how many devices the run has. arguments: those of the command `train` that name the run.
    """
    if count == 1 or "RANK" in os.environ:
        return OtherRanks([])
    # A port that is bound but not listened to stays ours. A rank that connects too early is refused, and tries again.
    port = socket.socket()
    port.bind(("127.0.0.1", 0))
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port.getsockname()[1]),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "RANK": "0",
        "LOCAL_RANK": "0",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        start_process(
            "train",
            *arguments,
            "--tied",
            environment={"RANK": str(rank), "LOCAL_RANK": str(rank)},
            before=when_the_parent_ends(signal.SIGKILL),  # a rank that is stopped does not see its pipe end
        )
        for rank in range(1, count)
    ]
    return OtherRanks(processes, port)


class OtherRanks:
    """The processes that rank 0 has started. If one fails, this process ends in the same way."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], port: socket.socket | None = None) -> None:
        self._processes = processes
        self._port = port
        self._stopping = False
        if processes:
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def release_port(self) -> None:
        """Free the port, so that torch can bind it for the meeting of the ranks."""
        if self._port is not None:
            self._port.close()

    def expect_to_stop(self) -> None:
        """Let the others stop from now on: the run was told to, and this process may still be writing a checkpoint."""
        self._stopping = True

    def end_with_the_failed(self) -> None:
        """Wait `GRACE_SECONDS` for another rank to fail, and end this process the same way; return if none fails."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self._processes and time.monotonic() < deadline:
            if self._failed():
                time.sleep(POLL_SECONDS)  # others may have failed at the same moment
                self._end()
            time.sleep(POLL_SECONDS)

    def _failed(self) -> list[int]:
        # One that was told to stop by itself will never meet the others.
        harmless = (TrainerExit.SUCCEEDED, TrainerExit.INTERRUPTED) if self._stopping else (TrainerExit.SUCCEEDED,)
        ended = [code for process in self._processes if (code := process.poll()) is not None]
        # A rank may have crashed only because another one was gone: crashes come last.
        return sorted((code for code in ended if code not in harmless), key=lambda code: code in _SAYS_LEAST)

    def _watch(self) -> None:
        """End this process if a rank has failed: it cannot notice that by itself while it waits for that rank."""
        while True:
            while not self._failed():
                time.sleep(POLL_SECONDS)
            time.sleep(2 * GRACE_SECONDS)
            self._end()

    def _end(self) -> None:
        """End this process as another rank did, unless it has turned out that the run was told to stop."""
        failed = self._failed()
        if not failed:
            return
        code = failed[0]
        _log.error("A rank ended with %d, and so does this one", code)
        if code < 0:
            with contextlib.suppress(ValueError):
                os.kill(os.getpid(), signal.Signals(-code))
        os._exit(code)
