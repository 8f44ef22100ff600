"""The processes of a run on several devices of this machine: the trainer, which is rank 0, starts the others.

torchrun and `accelerate launch` may start them instead, on several machines too; the environment is the same. Here
they are not used because they hide how a rank ended, put the ranks into sessions of their own, where their niceness
no longer counts against the service's, and let them outlive a SIGKILL.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from ..store.run import TrainerExit
from ..store.runs import RunStore
from ..store.workspace import Workspace
from .command import start_process

GRACE_SECONDS = 5.0  # in which the failure of one rank reaches the others
POLL_SECONDS = 0.05
_HARMLESS = (None, TrainerExit.SUCCEEDED, TrainerExit.INTERRUPTED)

_log = logging.getLogger(__name__)


def start_other_ranks(workspace: Path, run: str) -> "OtherRanks":
    """Start a process for each further device of a run, and make this one rank 0.

    Nothing is started where the run has one device, or where a launcher has started this process as one of several.
    """
    if "RANK" in os.environ:
        return OtherRanks([])
    store = RunStore(Workspace(workspace))
    count = store.get(run).ranks
    store.close()
    if count == 1:
        return OtherRanks([])
    # Bound and not listened to, the port is kept for this process; who calls too early is refused, and tries again.
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
            "train", workspace, "--run", run, "--tied", environment={"RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(1, count)
    ]
    return OtherRanks(processes, port)


class OtherRanks:
    """The processes that rank 0 has started. If one fails, this process ends in the same way."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], port: socket.socket | None = None) -> None:
        self._processes = processes
        self._port = port
        if processes:
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def release_port(self) -> None:
        """Let the port that was kept be bound again, by whoever now lets the ranks meet."""
        if self._port is not None:
            self._port.close()

    def end_with_the_failed(self) -> None:
        """End this process as the rank ended that failed first, if one does so soon; else return."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self._processes and time.monotonic() < deadline:
            if self._failed():
                time.sleep(POLL_SECONDS)  # for those that failed at the same moment
                self._end()
            time.sleep(POLL_SECONDS)

    def _failed(self) -> list[int]:
        codes = [process.poll() for process in self._processes]
        # One that crashed may have done so because another one was gone.
        return sorted((code for code in codes if code not in _HARMLESS), key=lambda code: code == TrainerExit.CRASHED)

    def _watch(self) -> None:
        """While this process waits for another rank it cannot notice by itself that there is none any more."""
        while not self._failed():
            time.sleep(POLL_SECONDS)
        time.sleep(2 * GRACE_SECONDS)
        self._end()

    def _end(self) -> None:
        code = self._failed()[0]
        _log.error("A rank ended with %d, and so does this one", code)
        if code < 0:
            with contextlib.suppress(ValueError):
                os.kill(os.getpid(), signal.Signals(-code))
        os._exit(code)
