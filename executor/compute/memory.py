"""How a trainer uses memory, whether memory ran out, and how many processes the kernel killed for it.

The service uses this too, so torch is not imported here.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's mallopt(3)
OOM_SCORE = 500  # of 1000: the kernel adds half of all memory to what the process takes
# What torch, oneDNN, C++ and CUDA libraries say in a RuntimeError; Python and numpy raise a MemoryError.
_SAYINGS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN: its code and scratch space did not fit
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that the memory of a device or of the machine ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)
    )


def be_killed_first() -> None:
    """Tell the kernel to kill this process before others, such as the service, when memory runs out."""
    file = Path("/proc/self/oom_score_adj")
    if file.exists():
        file.write_text(f"{OOM_SCORE}\n")


def keep_freed_memory(limit: int = 2**31 - 1) -> None:
    """Let this process keep memory that it frees, up to `limit` bytes of it, for its next step or batch.

    By itself, glibc gives large tensors back to the kernel at once, and the kernel clears every page that it hands out.
    Keeping them, a training step of the default model took an eighth less processor time, and a batch of 64 pictures
    through it two fifths less. Threads that begin later share the arenas that are there, since each keeps so much, and
    gives its end back never: with an arena for each thread that had loaded a model, a service grew from 470 to 670 MB
    in 65 versions, and used 270. On two cores that cost no speed. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_TRIM_THRESHOLD, limit)


def give_back_freed_memory() -> None:
    """Give the kernel what this process has freed and kept, such as the memory of a model that is served no more."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def not_collecting() -> Iterator[None]:
    """Import, in this block, without looking for garbage, neither meanwhile nor ever after among what was imported.

    Imports make hundreds of thousands of objects that stay. Python goes through all of them again and again: 0.4 of the
    2.5 s of processor time that the imports of a trainer took. Going through them once more takes 0.12 s.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class KernelKills:
    """The kernel's count of the processes that it killed because memory ran out.

    The count is that of the cgroup (version 2 or 1) of process `pid`, or of the whole machine if its cgroup has none.

    Args: root: the folder that contains `proc` and `sys`.
    """

    def __init__(self, pid: int, root: Path = Path("/")) -> None:
        self._file = next((file for file in _counters(pid, root) if _count(file) is not None), None)
        self._before = self.count()

    def count(self) -> int | None:
        """How many processes were killed so far; None if the kernel does not tell."""
        return _count(self._file) if self._file is not None else None

    def grew(self) -> bool:
        """Whether a process was killed since this object was made."""
        return (self.count() or 0) > (self._before or 0)


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
