"""Decoding takes no more memory at one time than it may, and no more processor time for a picture."""

import threading
import time

import pytest

from executor.errors import BadDocument
from executor.images.budget import (
    LARGE_BYTES,
    LARGE_READ,
    SMALL_READS,
    LargePicture,
    Memory,
    Reader,
    abandoned_when,
    reserved,
    small_only,
)


class Holder(threading.Thread):
    """Reserves memory and gives it back when it is told to."""

    def __init__(self, memory: Memory, size: int, limit: int = 100) -> None:
        super().__init__(daemon=True)
        self.has_it, self.may_go = threading.Event(), threading.Event()
        self._reservation = memory, size, limit
        self.start()

    def run(self) -> None:
        memory, size, limit = self._reservation
        with memory.reserved(size, limit):
            self.has_it.set()
            self.may_go.wait(60)

    def go(self) -> None:
        self.may_go.set()
        self.join(60)


def test_reservations_that_fit_together_do_not_wait():
    memory = Memory()
    holders = [Holder(memory, 50), Holder(memory, 50)]
    assert all(holder.has_it.wait(60) for holder in holders)
    for holder in holders:
        holder.go()


def test_a_reservation_waits_until_there_is_room():
    memory = Memory()
    first = Holder(memory, 60)
    assert first.has_it.wait(60)
    second = Holder(memory, 41)
    assert not second.has_it.wait(0.1)
    first.go()
    assert second.has_it.wait(60)
    second.go()


def test_one_that_is_larger_than_all_is_made_alone():
    memory = Memory()
    small = Holder(memory, 1)
    assert small.has_it.wait(60)
    large = Holder(memory, 1000)
    assert not large.has_it.wait(0.1)
    small.go()
    assert large.has_it.wait(60)
    next_one = Holder(memory, 1)
    assert not next_one.has_it.wait(0.1)
    large.go()
    assert next_one.has_it.wait(60)
    next_one.go()


def test_a_large_reservation_is_not_passed_by_small_ones_for_ever():
    memory = Memory()
    first = Holder(memory, 10)
    assert first.has_it.wait(60)
    large = Holder(memory, 100)
    assert not large.has_it.wait(0.1)
    small = Holder(memory, 10)
    assert not small.has_it.wait(0.1)
    first.go()
    assert large.has_it.wait(60)
    assert not small.has_it.is_set()
    large.go()
    assert small.has_it.wait(60)
    small.go()


def test_memory_is_given_back_after_an_error():
    memory = Memory()
    with pytest.raises(RuntimeError), memory.reserved(100, 100):
        raise RuntimeError
    with memory.reserved(100, 100):
        pass


def test_large_pictures_leave_room_for_small_ones():
    with reserved(LARGE_BYTES + 1, limit=1), reserved(LARGE_BYTES, limit=1):
        pass


def test_a_thread_for_small_pictures_leaves_large_ones_to_another():
    with small_only(True):
        with pytest.raises(LargePicture):
            reserved(LARGE_BYTES + 1, limit=1)
        with reserved(LARGE_BYTES, limit=1):
            pass
    with reserved(LARGE_BYTES + 1, limit=1):
        pass


def read_slowly(reader: Reader, size: int) -> None:
    """Read a file to its end, piece by piece, and compute a little for each."""
    while reader.read(size):
        sum(range(10_000))


def test_reading_ends_when_the_processor_time_is_used_up(monkeypatch):
    monkeypatch.setattr("executor.images.budget.SECONDS", 0.05)
    reader = Reader(bytes(100_000_000), pixels=0)
    with pytest.raises(BadDocument, match="takes too long to decode; save it anew"):
        read_slowly(reader, LARGE_READ)


def test_a_larger_picture_has_more_time(monkeypatch):
    monkeypatch.setattr("executor.images.budget.SECONDS", 0.0)
    reader = Reader(bytes(LARGE_READ), pixels=4_000_000_000)
    end = time.thread_time() + 0.02
    while time.thread_time() < end:
        pass
    assert reader.read(LARGE_READ) == bytes(LARGE_READ)


def test_reading_ends_in_many_small_steps_too():
    with abandoned_when(lambda: True):
        reader = Reader(bytes(10 * SMALL_READS), pixels=0)
        with pytest.raises(BadDocument, match="whoever sent it has gone"):
            read_slowly(reader, 1)


def test_only_what_is_read_meanwhile_is_abandoned():
    with abandoned_when(lambda: True):
        pass
    assert Reader(b"all", pixels=0).read() == b"all"
