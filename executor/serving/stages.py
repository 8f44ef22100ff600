"""The stages of one call of `/embed`, for its trace: waiting in the queue, fetching, decoding, the forward pass."""

import contextlib
import threading
import time

from .. import tracing


class Stages:
    """When each stage began and ended. Pictures of a call pass through side by side, so stages overlap.

    Attributes: began: when the call was let in, in nanoseconds since 1970.
    """

    def __init__(self) -> None:
        self.began = time.time_ns()
        self._lock = threading.Lock()
        self._spans: dict[str, tuple[int, int]] = {}

    def ran(self, stage: str, began: int) -> None:
        """Note that a stage ran for a picture, or for a batch, from `began` until now."""
        ended = time.time_ns()
        with self._lock:
            first, last = self._spans.get(stage, (began, ended))
            self._spans[stage] = min(first, began), max(last, ended)

    def record(self, version: str, images: int) -> None:
        """Make a span of each stage, within the current one. The queue lasts until the first picture is decoded."""
        attributes: dict[str, tracing.Value] = {"finetuner.version": version, "finetuner.images": images}
        first, _ = self._spans.get("decode", (self.began, 0))
        for stage, (began, ended) in {"queue": (self.began, first), **self._spans}.items():
            tracing.record(f"embed.{stage}", began, ended, attributes)


class _Running:
    """Notes how long a `with` block took."""

    def __init__(self, stages: Stages, stage: str) -> None:
        self._stages = stages
        self._stage = stage

    def __enter__(self) -> None:
        self._began = time.time_ns()

    def __exit__(self, *_: object) -> None:
        self._stages.ran(self._stage, self._began)


def running(stages: Stages | None, stage: str) -> contextlib.AbstractContextManager[None]:
    """Note how long a `with` block takes; nothing for a call that is not traced."""
    return _NOTHING if stages is None else _Running(stages, stage)


_NOTHING = contextlib.nullcontext()
