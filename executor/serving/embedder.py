"""Embed documents with a model version: load versions, and let callers in, or refuse them where too many wait.

A promotion takes effect at the next request. A request that has begun keeps its version, so no response mixes versions.
"""

import asyncio
import contextlib
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..compute.memory import give_back_freed_memory
from ..compute.threads import in_brief_thread
from ..errors import FinetunerError, NotReady, Overloaded
from ..parameters import ExecutorOptions
from .pipeline import Pipeline, Request, Version

if TYPE_CHECKING:
    from ..models.model import EmbeddingModel

_log = logging.getLogger(__name__)

KEPT_MODELS = 3  # stay loaded when another is asked for: the promoted one, base and one more
# Of one caller so many images count as waiting, because callers take turns: its others delay only itself. Jina cuts one
# call into up to 1,000 requests at a time, each a caller of its own, and even these leave room in the default queue.
COUNTED_OF_A_CALLER = 4


class Versions(Protocol):
    """Where versions come from: the workspace of a writer, or what a reader follows."""

    def served(self) -> str:
        """Return the name of the version now served."""

    def load(self, version: str) -> "EmbeddingModel":
        """Return the model of a version. Raises: UnknownModel: there is no such version."""

    def folder(self, version: str) -> Path:
        """Return the folder of the files of a version that was loaded."""


class Embedder:
    """Loads versions when they are asked for and embeds with them.

    Args: batched: is told how many images each batch has.
    Attributes: load_error: why the version now served could not be loaded, the last time that was tried.
    """

    def __init__(
        self, versions: Versions, options: ExecutorOptions, batched: Callable[[int], None] = lambda images: None
    ) -> None:
        self._source = versions
        self._options = options
        self._promoted = versions.served
        self.load_error: str | None = None
        self._warming: threading.Thread | None = None
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._ways: dict[int, str] = {}  # how versions of a network are served, by a hash of its parameters' shapes
        self._loading = threading.Lock()
        self._waiting: Counter[Hashable] = Counter()  # images of each caller; changed only in the event loop
        self._counted = 0  # of all callers, of each at most `COUNTED_OF_A_CALLER`
        self._pipeline = Pipeline(callers=lambda: len(self._waiting), batched=batched)

    def warm(self) -> None:
        """Load the promoted version in the background, so that the first request need not wait for it."""
        if self._warming is None or not self._warming.is_alive():
            self._warming = threading.Thread(target=self._warm, name="warm-up", daemon=True)
            self._warming.start()

    def _warm(self) -> None:
        try:
            self.version(self._promoted())
        except Exception as error:  # the first request will raise the same error, and its caller sees it
            before, self.load_error = self.load_error, str(error) or type(error).__name__
            if self.load_error != before:  # it is tried again and again
                explained = isinstance(error, FinetunerError)
                _log.error("The model cannot be loaded: %s", self.load_error, exc_info=not explained)

    @property
    def waiting(self) -> int:
        """How many images are in calls that have not been answered yet."""
        return sum(self._waiting.values())

    def loaded(self, name: str) -> Version | None:
        """Return a version if it is loaded."""
        return self._versions.get(name)

    def close(self) -> None:
        """Embed what still waits, then end the threads."""
        if self._warming is not None:
            self._warming.join()  # a thread that computes when Python ends takes the process with it
        self._pipeline.close()

    async def embed(
        self,
        docs: Sequence[Any],
        *,
        model: str | None = None,
        matches: bool = False,
        exact: bool = False,
        caller: Hashable = None,
    ) -> str:
        """Set the embeddings of `docs` in place and return the name of the version.

        A document that cannot be embedded gets `tags['finetuner_error']` instead.

        If this is cancelled, documents that are not embedded yet are left alone.

        Args:
            exact: compute in fp32, as a run does when it measures its model.
            caller: who asks, for a door that cuts a call into several: all with an equal `caller` are one caller.
                Callers take turns, image by image. By default each call is a caller.

        Raises: UnknownModel: there is no such version. Overloaded: others wait, and all together would be more than
            `max_queued_images` images, of which a caller has at most `COUNTED_OF_A_CALLER`.
        """
        name = model or self._promoted()
        version = self._versions.get(name)
        if version is None:
            version = await asyncio.to_thread(self.version, name)
        if exact:
            version = replace(version, bf16=False, graph=None)
        parts = [part for doc in docs for part in (doc, *(doc.matches if matches else ()))]
        if not parts:
            return version.name
        caller = object() if caller is None else caller
        request = Request(len(parts), version, caller)
        self._let_in(caller, len(parts))
        try:
            self._pipeline.put(parts, request)
            await request.done.wait()
            if request.stages is not None:
                request.stages.record(version.name, len(parts))
        finally:
            request.abandoned = True
            self._let_go(caller, len(parts))
        return version.name

    def _let_in(self, caller: Hashable, images: int) -> None:
        before = self._waiting[caller]
        others = self._counted - _counts(before)
        counted = others + _counts(before + images)
        if others and self._counted < counted > self._options.max_queued_images:
            raise Overloaded(
                f"{sum(self._waiting.values())} images of {len(self._waiting)} callers wait to be embedded, and "
                f"max_queued_images is {self._options.max_queued_images} (of a caller at most {COUNTED_OF_A_CALLER} "
                "count); try again in a moment, or raise that option of the executor."
            )
        self._counted = counted
        self._waiting[caller] += images

    def _let_go(self, caller: Hashable, images: int) -> None:
        before = self._waiting[caller]
        self._counted -= _counts(before) - _counts(before - images)
        self._waiting[caller] -= images
        if not self._waiting[caller]:
            del self._waiting[caller]

    def version(self, name: str) -> Version:
        """Return a version, and load it first if needed. Raises: UnknownModel: there is no such version."""
        found = self._versions.get(name)
        if found is not None:
            return found
        with self._loading:
            if name not in self._versions:
                self._versions[name] = in_brief_thread(self._load, name)
                self._let_go_of_others(name)
            return self._versions[name]

    def renew(self, name: str) -> None:
        """Load a version, in place of another of its name. Requests that have begun with the other finish with it."""
        version = in_brief_thread(self._load, name)
        with self._loading:
            self._versions[name] = version
            self._let_go_of_others(name)

    def _let_go_of_others(self, name: str) -> None:
        """Let go of those loaded longest ago. `base`, the one now served, `name`, and the last of the others stay."""
        kept = {"base", name}
        with contextlib.suppress(NotReady):  # a reader may serve nothing yet
            kept.add(self._promoted())
        for other in [other for other in self._versions if other not in kept][: -KEPT_MODELS + 2]:
            del self._versions[other]

    def forget(self, name: str) -> None:
        """Drop a deleted version. Requests that have begun with it still finish with it."""
        with self._loading:
            self._versions.pop(name, None)

    def _load(self, name: str) -> Version:
        from ..compute.device import choose_device
        from ..loading.content import make_preprocess
        from ..models.saving import space_of
        from .inference import choose_path, is_light, served_by, way_of

        device = choose_device(self._options)
        model = self._source.load(name).to(device).eval()
        plain = not self._options.fast_inference or self._options.preprocess_fn is not None
        size, folder = model.preprocessing.size, self._source.folder(name)
        network = hash((size, *((each, value.shape) for each, value in model.named_parameters())))
        like = self._ways.get(network)
        bf16, graph = (False, None) if plain else choose_path(model, size, device, folder, like=like)
        served = served_by(model, device, bf16=bf16, graph=graph)
        light = not plain and device.type == "cpu" and is_light(served, size)
        if not plain:
            self._ways[network] = way_of(bf16, graph)
        space = space_of(folder)
        give_back_freed_memory()  # loading takes several times what stays, and another version may have gone before
        return Version(name, space, model, make_preprocess(self._options, model), device, bf16, light, graph)


def _counts(images: int) -> int:
    """Return how many of a caller's images count as waiting."""
    return min(images, COUNTED_OF_A_CALLER)
