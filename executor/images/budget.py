"""What the decoding of a picture may cost: memory over all threads together, and processor time for each picture.

Memory is reserved before it is taken. A thread waits for its turn until the others have given back enough. Small and
large pictures have half of it each, so that small ones do not wait for large ones. A picture that needs more than its
half is the only large one meanwhile.

Processor time is counted by the thread, so a busy machine makes nobody late. Codecs read the file piece by piece, and
at each piece `Reader` looks at the time and whether anybody still waits for the picture. What cannot be interrupted and
would take too long is refused by its header (see `formats/`).
"""

import contextlib
import contextvars
import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from ..errors import BadDocument

LARGE_BYTES = 64 * 1024 * 1024  # a picture that takes more memory is a large one
SECONDS = 2.0  # of processor time, for a picture of any size
SECONDS_A_MEGAPIXEL = 0.25  # and this in addition; the slowest codec takes a tenth of it
LARGE_READ = 4096  # bytes; the codecs' own reads are of 16 kB and more
SMALL_READS = 256  # after so many smaller ones the time is looked at, too


class Memory:
    """Bytes that all threads together may reserve. Who comes first is served first, so nothing large waits for ever."""

    def __init__(self) -> None:
        self._taken = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def reserved(self, size: int, limit: int) -> Iterator[None]:
        """Hold `size` bytes of `limit`; wait until the others leave room for them.

        Args: limit: of all reservations together; one that is larger is made when there is no other.
        """
        with self._changed:
            if self._waiting or not self._fits(size, limit):
                self._wait(size, limit)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def _wait(self, size: int, limit: int) -> None:
        turn = object()
        self._waiting.append(turn)
        self._changed.wait_for(lambda: self._waiting[0] is turn and self._fits(size, limit))
        self._waiting.popleft()
        self._changed.notify_all()  # the next may fit as well

    def _fits(self, size: int, limit: int) -> bool:
        return self._taken == 0 or self._taken + size <= limit


_small, _large = Memory(), Memory()  # of this process: its memory is one, whoever decodes in it


class LargePicture(Exception):
    """The picture is a large one, and this thread decodes small ones only."""


def reserved(size: int, limit: int) -> contextlib.AbstractContextManager[None]:
    """Hold memory for a picture, and wait until there is enough.

    Args: limit: of what all pictures that are decoded at one time may take.
    Raises: LargePicture: within `small_only`.
    """
    if size <= LARGE_BYTES:
        return _small.reserved(size, limit // 2)
    if _small_only.get():
        raise LargePicture
    return _large.reserved(size, limit // 2)


_small_only: contextvars.ContextVar[bool] = contextvars.ContextVar("small_only", default=False)


@contextlib.contextmanager
def small_only(wanted: bool) -> Iterator[None]:
    """Decode only small pictures in this thread, if `wanted`; for a large one `LargePicture` is raised."""
    token = _small_only.set(wanted)
    try:
        yield
    finally:
        _small_only.reset(token)


_abandoned: contextvars.ContextVar[Callable[[], bool]] = contextvars.ContextVar("abandoned", default=lambda: False)


@contextlib.contextmanager
def abandoned_when(gone: Callable[[], bool]) -> Iterator[None]:
    """What this thread decodes is broken off once `gone()` is true: nobody waits for it any more."""
    token = _abandoned.set(gone)
    try:
        yield
    finally:
        _abandoned.reset(token)


class Reader(io.BytesIO):
    """An encoded picture that a codec reads until its time is up.

    Args: pixels: of the picture; a larger one may take longer.
    Raises: BadDocument: while it is read: the time is up, or nobody waits for the picture any more.
    """

    def __init__(self, data: bytes, pixels: int) -> None:
        super().__init__(data)
        seconds = SECONDS + SECONDS_A_MEGAPIXEL * pixels / 1e6
        self._end = time.thread_time() + seconds
        self._soonest = time.monotonic() + seconds
        self._gone = _abandoned.get()
        self._small_reads = SMALL_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does."""
        self._small_reads -= 1
        if size is None or not 0 <= size < LARGE_READ or self._small_reads <= 0:
            self._small_reads = SMALL_READS
            self._check()
        return super().read(size)

    def _check(self) -> None:
        if self._gone():
            raise BadDocument("The picture was not decoded to its end: whoever sent it has gone")
        # The thread's own clock is a call of the system. At its end another thread may get the core, while this one
        # holds Python's lock.
        if time.monotonic() > self._soonest and time.thread_time() > self._end:
            raise BadDocument("The image takes too long to decode; save it anew, for example as a baseline JPEG or PNG")
