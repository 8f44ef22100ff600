"""A trainer in a job's folder: `python -m executor train --job FOLDER`, once on one machine or as ranks on several."""

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..compute.ranks import ranks_of_environment
from ..errors import FinetunerError
from ..store.exchange import is_url
from ..store.files import full_folder, is_full, unwritable
from ..store.job import Attempt, Job
from ..store.job_store import JobStore
from ..store.run import TrainerExit
from .other_ranks import OtherRanks
from .trainer import main as run_trainer

LOOK_SECONDS = 1.0
TRIES = 10  # to send the result

_log = logging.getLogger(__name__)


def main(job: Job, *, others: OtherRanks) -> int:
    """Train the run of a job and return the exit code. Args: others: the ranks this process has started."""
    try:
        store = JobStore(job, ranks_of_environment().rank)
    except (FinetunerError, OSError) as error:
        if isinstance(error, OSError) and is_full(error):  # of this machine
            error = unwritable("a copy of the documents", full_folder(error, Path(tempfile.gettempdir())), error)
        sys.stderr.write(f"{error}\n")
        return TrainerExit.CRASHED
    sharing = Sharing(job)
    finished = threading.Event()
    threading.Thread(target=_obey, args=(job, store.attempt, finished), name="attempt", daemon=True).start()
    code = store.finish(run_trainer(store, store.run_name, others=others))
    finished.set()  # the folder is removed now, here or by the service
    return code if sharing.close() else TrainerExit.CRASHED


class Sharing:
    """Exchanges a job's copy with its store, once a second, in a thread. A job in a folder needs none of that."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="exchange", daemon=True)
        if is_url(job.address):
            self._thread.start()

    def _work(self) -> None:
        while not self._closing.wait(LOOK_SECONDS):
            self._exchange()

    def _exchange(self) -> bool:
        try:
            self._job.exchange.bring("inputs")
            self._job.exchange.send("made")
        except OSError as error:
            _log.warning("The job's folder cannot be exchanged: %s", error)
            return False
        return True

    def close(self) -> bool:
        """Send what is left. Return whether that could be done."""
        if not is_url(self._job.address):
            return True
        self._closing.set()
        self._thread.join()
        for _ in range(TRIES):
            if sent := self._exchange():
                break
            time.sleep(LOOK_SECONDS)
        shutil.rmtree(self._job.folder, ignore_errors=True)
        return sent


def _obey(job: Job, mine: Attempt, finished: threading.Event) -> None:
    """Stop this process when the service asks for it, and end it when the attempt may no longer work here.

    No signal of the service reaches other machines, but they all see the job's folder.
    """
    asked = False
    while not finished.wait(LOOK_SECONDS):
        try:
            attempt = job.attempt()
        except (OSError, ValueError) as error:
            _log.warning("The job's folder cannot be read: %s", error)
            continue
        if finished.is_set():
            return
        if attempt is None or attempt.id != mine.id:
            _log.warning("This attempt ends: the run was cancelled, or another attempt has begun")
            os._exit(TrainerExit.INTERRUPTED)
        if attempt.stop and not asked:
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)  # the trainer writes a checkpoint
