"""When memory does not suffice: how many items of a batch are in it at a time, and whether the kernel killed for it.

The service reads this too, so torch is not imported here.
"""

from pathlib import Path

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
