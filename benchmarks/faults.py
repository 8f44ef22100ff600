"""Kill or stop the trainer, kill the gateway or all of a Flow, again and again while it is used; count what is lost.

    .venv/bin/python -m benchmarks.faults [--kills 200] [--seed 0] [--minutes 90] [--quick]

Each of two customers posts documents to its run, a few at a time. When both runs have ended, they begin the next ones.
Other callers use `/status` and `/embed` all the time. One customer and one of the others speak gRPC with the Flow's
gateway, the rest HTTP with the door of our own. A failed `/fit` request is sent again until it is answered; some
answered requests are sent again too. Meanwhile we send SIGKILL to the trainer or to the service (one kill of four).
For the service we kill the gateway's process, the executor's, or all processes of the Flow at once, and then start the
Flow again as an operator would. Every fourth trainer gets SIGSTOP instead: the service must notice that by itself.
Half of the kills come at random times. The others wait for a moment: documents arrive, a run is queued, an epoch is
under way, a checkpoint is written, and so on. The table shows when the kills came. The trainer is killed at most twice
without a new checkpoint of its run, because the third time fails the run by design.

Counted at the end; all but the first must be 0, else the exit code is 1:

- acknowledged documents;
- among them documents that are lost (not in the run, or not in its status), and documents that are counted twice;
- runs whose state, weights (byte for byte) or per-epoch history differ from those of their twin, a run with the same
  documents and options that has ended before anything is killed;
- requests that failed although the service was not killed while they were under way;
- trainers that outlived their service;
- stopped trainers that were not replaced within a minute.
"""

import asyncio
import hashlib
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import free_port, options, print_machine, print_table
from benchmarks.customers import Ledger, Recipe, deliver, have_trained, recipes, wait_for_end
from benchmarks.killing import Killer, Victim
from benchmarks.serving import Served
from benchmarks.traffic import PAUSE, Caller, DoorCaller, Request, end
from executor.documents import RunStatus
from executor.store.spool import DocumentArrayMemmap
from executor.store.workspace import find_workspace

SERVICE_SHARE = 0.25  # share of the kills that hit the service
TINY_PAUSE = 0.4  # seconds between the requests of a steady caller, with --tiny
EVERY_VICTIM = 0.5  # the share by which four kills hit each kind of victim once
# One thread, so that sums are always computed in the same order. Runs wait for all their documents, however long. A
# trainer is not to stand still because the machine has other work: that would be one fault more.
SERVICE = {
    "model": "small",
    "input_size": 16,
    "trainer_threads": 1,
    "trainer_nice": 0,
    "trainer_yields": False,
    "receive_timeout": 3600.0,
    "trainer_stall_seconds": 15.0,  # a stopped one is replaced after a third of it
}


class Ended(NamedTuple):
    """The end of a run, which must be the same for all runs of a recipe."""

    state: str
    weights: str
    history: dict[str, list[float]]


# the service --------------------------------------------------------------------------------------------------------


async def train_twins(served: Served, of: dict[str, Recipe]) -> dict[str, Ended]:
    """Train every recipe once without disturbing it."""
    ledger, record = Ledger(), list[Request]()
    for name, recipe in of.items():
        await deliver(Caller(served.port, record), name, recipe, random.Random(0), ledger)
        await wait_for_end(Caller(served.port, record), name, ledger)
    for name in of:
        if name not in ledger.ended or ledger.ended[name].state != "succeeded":
            raise RuntimeError(f"the undisturbed run {name} did not succeed: {ledger.ended.get(name)}")
    return {name: how_ended(served, ledger.ended[name]) for name in of}


async def attack(
    served: Served,
    door: int,
    killer: Killer,
    of: dict[str, Recipe],
    seed: int,
    ledger: Ledger,
    record: list[Request],
    pause: float,
) -> None:
    """Use the service until the last kill is done and the last run has ended. Args: pause: of the steady callers."""
    callers = Caller(served.port, record), DoorCaller(door, record)
    steady = [
        Caller(served.port, record, pause).embed_steadily(),
        DoorCaller(door, record, pause).embed_steadily(),
        DoorCaller(door, record, pause).ask_steadily(),
    ]
    background = [asyncio.create_task(task) for task in steady]
    killing = asyncio.create_task(asyncio.to_thread(killer.work))
    customers = asyncio.create_task(have_trained(callers, of, seed, ledger, lambda: killer.finished))
    try:
        await asyncio.gather(asyncio.shield(killing), customers)
    finally:
        killer.stop()
        await asyncio.wait([killing])  # it may be starting the service again
        await end([*background, customers])


def how_ended(served: Served, status: RunStatus | None) -> Ended:
    """Return the state, the SHA-256 of the weights and the history of a run."""
    if status is None:
        return Ended("not ended", "", {})
    weights = find_workspace(served.workspace).model_folder(status.run) / "weights.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""
    return Ended(status.state, digest, status.history)


# the counts ----------------------------------------------------------------------------------------------------------


def lost_and_doubled(served: Served, run: str, recipe: Recipe, ledger: Ledger) -> tuple[int, int]:
    """Count the acknowledged documents of a run that are missing, and the documents that are there twice."""
    place = find_workspace(served.workspace).spool_file(run)
    stored: list[str] = []
    for split in ("train", "eval"):
        with DocumentArrayMemmap(place, split=split) as docs:
            stored += docs.ids()
    acknowledged = ledger.acknowledged[run]
    lost, doubled = len(acknowledged - set(stored)), len(stored) - len(set(stored))
    if (status := ledger.ended.get(run)) is not None:
        counted = status.train_documents + status.eval_documents
        lost, doubled = max(lost, len(acknowledged) - counted), max(doubled, counted - len(set(stored)))
    return lost, doubled


def failed_while_serving(record: Sequence[Request], down: Sequence[tuple[float, float]]) -> list[Request]:
    """Return the failed requests during which the service was always up."""
    return [
        request
        for request in record
        if request.error is not None and not any(request.began <= end and request.ended >= at for at, end in down)
    ]


def print_kills(killer: Killer) -> None:
    """Print when the kills came, and how many runs went on from a checkpoint."""
    counts = Counter((kill.moment, kill.victim) for kill in killer.kills)
    moments = sorted({moment for moment, _ in counts})
    rows = [(moment, *(counts[moment, victim] for victim in Victim)) for moment in moments]
    print_table(("killed while", *(victim.value for victim in Victim)), rows)
    went_on = [kill.checkpoint for kill in killer.kills if kill.resumes]
    print(f"runs taken up again: {len(went_on)}, of which {sum(step > 0 for step in went_on)} from a checkpoint")
    print(f"trainers that outlived their service: {killer.strays}")
    print(f"stopped trainers that were not replaced: {killer.unnoticed}")


def judge(
    served: Served,
    killer: Killer,
    of: dict[str, Recipe],
    twins: dict[str, Ended],
    ledger: Ledger,
    record: list[Request],
) -> bool:
    """Print the counts; return whether all that must be 0 are 0."""
    counted = [lost_and_doubled(served, run, of[name], ledger) for run, name in ledger.recipes.items()]
    lost, doubled = sum(each[0] for each in counted), sum(each[1] for each in counted)
    different = []
    for run, name in ledger.recipes.items():
        ended = how_ended(served, ledger.ended.get(run))
        if ended != twins[name]:
            parts = [part for part in Ended._fields if getattr(ended, part) != getattr(twins[name], part)]
            error = ledger.ended[run].error if run in ledger.ended else None
            different.append(f"{run} ({name}): {ended.state}, other {', '.join(parts)}; {error}")
    failed = failed_while_serving(record, killer.down)
    for line in (*different, *(f"{request.endpoint}: {request.error}" for request in failed[:20])):
        print(line)
    print_kills(killer)
    rows: list[tuple[str, int]] = [
        *((f"kills: {victim.value}", sum(kill.victim is victim for kill in killer.kills)) for victim in Victim),
        ("requests", len(record)),
        ("runs ended", len(ledger.ended)),
        ("documents acknowledged", sum(map(len, ledger.acknowledged.values()))),
        ("documents lost", lost),
        ("documents counted twice", doubled),
        ("runs that ended otherwise than their undisturbed twin", len(different)),
        ("requests that failed while the service was up", len(failed)),
    ]
    print_table(("", "count"), rows)
    faults = lost + doubled + len(different) + len(failed) + killer.strays + killer.unnoticed
    print(f"faults_in_{len(killer.kills)}_kills: {faults}", flush=True)
    return faults == 0


async def measure(kills: int, seed: int, minutes: float, epochs: int, *, tiny: bool) -> bool:
    """Train the twins, then disturb the service; return whether everything survived."""
    of = recipes(epochs, tiny=tiny)
    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        ledger, record = Ledger(), list[Request]()
        door = free_port()
        service = SERVICE | ({"fast_inference": False} if tiny else {})
        share = EVERY_VICTIM if tiny else SERVICE_SHARE
        with Served("ours", Path(place), http_port=door, **service) as served:
            twins = await train_twins(served, of)
            print("\nThe undisturbed twins have succeeded.\n", flush=True)
            killer = Killer(served, seed=seed, kills=kills, service_share=share, seconds=minutes * 60)
            await attack(served, door, killer, of, seed, ledger, record, TINY_PAUSE if tiny else PAUSE)
            return judge(served, killer, of, twins, ledger, record)


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, help="how often (200; quick: 20; tiny: 4, one of each kind)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, the victims and the customers")
    parser.add_argument("--minutes", type=float, default=90.0, help="after which nothing is killed any more")
    arguments = parser.parse_args()
    size = "tiny" if arguments.tiny else "quick" if arguments.quick else "full"
    kills = arguments.kills or {"tiny": 4, "quick": 20, "full": 200}[size]
    epochs = {"tiny": 12, "quick": 60, "full": 120}[size]
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    print_machine()
    try:
        return 0 if asyncio.run(measure(kills, arguments.seed, arguments.minutes, epochs, tiny=arguments.tiny)) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
