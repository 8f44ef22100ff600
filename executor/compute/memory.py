"""When memory does not suffice: how many items of a batch are in it at a time, and whether the kernel killed for it.

The service reads this too, so torch is not imported here.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import OutOfMemory

OOM_SCORE = 500  # of 1000: a process counts as if it took half of all memory more than it does
# What torch, oneDNN, C++ and CUDA libraries say in a RuntimeError; Python and numpy raise a MemoryError.
_SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, whose code and scratch space did not fit
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of a device or of the machine, did not suffice."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)
    )


class MicroBatch:
    """How many items of a batch are in memory at a time; less from the step on at which that was too many.

    Each halving is a line `step items` of a file, so that a resumed run makes each step as it was made before.

    Args:
        asked: items at a time; None: the whole batch. whole: the items of a batch, where `halve` is not told.
        file: where the halvings are kept; None: nowhere.
        say: is told of each halving, a sentence.
    """

    def __init__(
        self,
        asked: int | None,
        whole: int | None = None,
        *,
        file: Path | None = None,
        say: Callable[[str], None] = lambda note: None,
    ) -> None:
        self._asked = asked
        self._whole = whole
        self._file = file
        self._say = say
        self._halvings: list[tuple[int, int]] = []
        if file is not None and file.exists():
            lines = [line.split() for line in file.read_text().splitlines()]
            self._halvings = [(int(step), int(items)) for step, items in lines]

    def at(self, step: int) -> int | None:
        """Items in memory at a time when `step` steps are done; None: the whole batch, however large."""
        limits = [items for first, items in self._halvings if first <= step]
        return min([*limits, *([self._asked] if self._asked else [])], default=None)

    def halve(self, step: int, items: int | None = None) -> None:
        """Note that, when `step` steps were done, memory did not suffice for `items`, or for what `at` says.

        Raises: OutOfMemory: it was one item.
        """
        tried = min(number for number in (items, self.at(step), self._whole) if number is not None)
        if tried == 1:
            raise OutOfMemory(
                "There is too little memory to train on even 1 image at a time; lower input_size, choose a smaller "
                "model, or give the trainer more memory."
            )
        self._halvings.append((step, tried // 2))
        if self._file is not None:
            temporary = self._file.with_suffix(".new")
            temporary.write_text("".join(f"{first} {number}\n" for first, number in self._halvings))
            os.replace(temporary, self._file)
        self._say(
            f"There was too little memory for {tried} images at a time: from step {step} on a batch is computed in "
            f"parts of {tried // 2}. It is compared as a whole still; batch norm sees the parts."
        )


def be_killed_first() -> None:
    """Let the kernel, when memory runs out, kill this process rather than another, such as the service."""
    file = Path("/proc/self/oom_score_adj")
    if file.exists():
        file.write_text(f"{OOM_SCORE}\n")


class KernelKills:
    """The kernel's count of the processes that it killed because memory ran out, where process `pid` is counted.

    That is its cgroup's (of version 2 or 1), else the whole machine's.

    Args: root: the folder in which `proc` and `sys` lie.
    """

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._file = next((file for file in _counters(pid, root) if _count(file) is not None), None)
        self._before = self.count()

    def count(self) -> int:
        """The processes killed so far; 0 if the kernel does not tell."""
        return (_count(self._file) if self._file is not None else None) or 0

    def grew(self) -> bool:
        """Whether a process was killed since this object was made."""
        return self.count() > self._before


def _counters(pid: int, root: Path) -> list[Path]:
    """The files that may have the count, best first. A container may see its cgroup as the root of the hierarchy."""
    try:
        memberships = (root / "proc" / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        memberships = []
    found = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        mounted, name = root / "sys/fs/cgroup", "memory.events"
        if "memory" in controllers.split(","):
            mounted, name = mounted / "memory", "memory.oom_control"
        elif controllers:
            continue
        found += [mounted / path.lstrip("/") / name, mounted / name]
    return [*found, root / "proc/vmstat"]


def _count(file: Path) -> int | None:
    """The value of `oom_kill` in a file of lines `name value`; None if it is not there."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
