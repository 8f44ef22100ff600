"""A trainer in a job's folder: `python -m executor train --job FOLDER`, once on one machine or as ranks on several."""

import logging
import os
import signal
import sys
import threading
import time

from ..compute.ranks import ranks_of_environment
from ..errors import FinetunerError
from ..store.job import Attempt, Job
from ..store.job_store import JobStore
from ..store.run import TrainerExit
from .other_ranks import OtherRanks
from .trainer import main as run_trainer

LOOK_SECONDS = 1.0

_log = logging.getLogger(__name__)


def main(job: Job, *, others: OtherRanks) -> int:
    """Train the run of a job and return the exit code. Args: others: the ranks this process has started."""
    try:
        store = JobStore(job, ranks_of_environment().rank)
    except FinetunerError as error:
        sys.stderr.write(f"{error}\n")
        return TrainerExit.CRASHED
    threading.Thread(target=_obey, args=(job, store.attempt), name="attempt", daemon=True).start()
    return store.finish(run_trainer(store, store.run_name, others=others))


def _obey(job: Job, mine: Attempt) -> None:
    """Stop this process when the service asks for it, and end it when the attempt may no longer work here.

    No signal of the service reaches other machines, but they all see the job's folder.
    """
    asked = False
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            attempt = job.attempt()
        except (OSError, ValueError) as error:
            _log.warning("The job's folder cannot be read: %s", error)
            continue
        if attempt is None or attempt.id != mine.id:
            _log.warning("This attempt ends: the run was cancelled, or another attempt has begun")
            os._exit(TrainerExit.INTERRUPTED)
        if attempt.stop and not asked:
            asked = True
            os.kill(os.getpid(), signal.SIGTERM)  # the trainer writes a checkpoint
