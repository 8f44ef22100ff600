"""The figures of a service, for Prometheus. Histograms and counters begin at 0 with the service."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..errors import FinetunerError
from ..store.run import RunState
from ..store.runs import RunStore
from .health import has_stopped_trainer, space_of

if TYPE_CHECKING:
    from .reader import Reader
    from .service import Service

PROMOTIONS = ("promoted", "kept", "failed", "by_hand")
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

disable_created_metrics()  # otherwise each counter has a second series with its time of birth


class Measures:
    """What is counted while it happens. The rest is read when somebody asks: see `_Standing`.

    Attributes:
        embed_seconds: of each call of `/embed`, over any door. batch_images: of each forward pass.
        documents: that `/fit` has stored or quarantined, repeated ones included, by `split`.
        promotions: by `outcome`: `promoted` by a run, `kept` the served version, `failed` to load, `by_hand`.
    """

    def __init__(self, service: "Service | Reader") -> None:
        self._registry = CollectorRegistry()
        self.embed_seconds = Histogram(
            "finetuner_embed_seconds", "Seconds of a call of /embed", buckets=_SECONDS, registry=self._registry
        )
        self.batch_images = Histogram(
            "finetuner_embed_batch_images", "Images in a forward pass", buckets=_IMAGES, registry=self._registry
        )
        self.documents = Counter(
            "finetuner_documents", "Documents that /fit has taken", ["split"], registry=self._registry
        )
        self.promotions = Counter(
            "finetuner_promotions", "Judged runs, and /promote", ["outcome"], registry=self._registry
        )
        for split in ("train", "eval"):
            self.documents.labels(split)
        for outcome in PROMOTIONS:
            self.promotions.labels(outcome)
        self._registry.register(_Standing(service))

    async def exposition(self) -> bytes:
        """Return all figures in the text format of Prometheus."""
        return await asyncio.to_thread(generate_latest, self._registry)


class _Standing(Collector):
    """Reads how things stand, at each scrape. What cannot be read is left out: no figure is better than a false one."""

    def __init__(self, service: "Service | Reader") -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return []  # without it the registry would collect once at the start

    def collect(self) -> Iterator[Metric]:
        yield _gauge("finetuner_images_waiting", "Images in /embed", self._service.embedder.waiting)
        try:
            yield self._served()
            if (store := getattr(self._service, "store", None)) is not None:  # a reader has none
                yield from _of_runs(store)
                yield _gauge("finetuner_workspace_bytes", "Disk that is taken", store.workspace.total_bytes())
        except (FinetunerError, OSError):
            return

    def _served(self) -> Metric:
        name = self._service.served()
        info = GaugeMetricFamily("finetuner_served_version_info", "The version now served", labels=["version", "space"])
        info.add_metric([name, space_of(self._service, name) or ""], 1)
        return info


def _of_runs(store: RunStore) -> Iterator[Metric]:
    runs = store.all()
    states = [run.state for run in runs]
    counts = GaugeMetricFamily("finetuner_runs", "Runs by their state", labels=["state"])
    for state in RunState:
        counts.add_metric([state.value], states.count(state))
    yield counts
    yield _gauge("finetuner_queue_length", "Runs that wait to be trained", states.count(RunState.QUEUED))
    training = [run for run in runs if run.state is RunState.TRAINING and not has_stopped_trainer(run)]
    rate = sum(store.progress(run.name).images_per_second or 0.0 for run in training)
    yield _gauge("finetuner_trainer_images_per_second", "Images that the trainer learns from a second", rate)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)
