"""Load the content of an item from its document: by the default image loading, or the configured `preprocess_fn`."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..compute.memory import is_out_of_memory
from ..errors import BadDocument, ConfigurationError, FinetunerError
from ..images.policy import ImagePolicy
from ..images.reading import image_of
from ..images.uris import is_remote
from ..models.model import EmbeddingModel
from ..models.preprocessing import Preprocessing
from ..parameters import ExecutorOptions
from .batches import is_image
from .cache import ImageCache
from .datasets import Dataset


def make_preprocess(options: ExecutorOptions, model: EmbeddingModel) -> Callable[[Any], Any]:
    """Return the configured `preprocess_fn`, or the default image loading. Either resizes images to fit the model."""
    if options.preprocess_fn is None:
        return ModelImages(model.preprocessing, options.image_policy())
    return fit_to_model(import_function(options.preprocess_fn), model.preprocessing)


def import_function(path: str) -> Callable[[Any], Any]:
    """Return the function at `package.module:function`. Raises: ConfigurationError: it cannot be imported."""
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"preprocess_fn={path!r} cannot be imported ({error}); write package.module:function."
        ) from error
    if not callable(function):
        raise ConfigurationError(f"preprocess_fn={path!r} is not a function.")
    return function  # type: ignore[no-any-return]


DECODED_SIDES = 4  # of the pixels that are left in the end


class ModelImages:
    """The default `preprocess_fn`: a document's image as size × size × 3 uint8, the same for training and serving.

    A JPEG file is decoded at `DECODED_SIDES` times the model's side or more, so that the picture has the same embedding
    as an array, which is never decoded. At once or twice the side, many photographs had another nearest neighbour.
    """

    def __init__(self, preprocessing: Preprocessing, policy: ImagePolicy) -> None:
        self.preprocessing = preprocessing
        self.policy = policy

    def __call__(self, doc: Any) -> np.ndarray:
        """Raises: BadDocument: the document has no readable image."""
        return self.preprocessing.resize(
            image_of(doc, self.policy, min_size=DECODED_SIDES * self.preprocessing.shrunk_to)
        )

    def remote(self, doc: Any) -> tuple[str, ImagePolicy] | None:
        """Return the uri that loading `doc` would fetch, and by which policy, so that it can be fetched before."""
        return (doc.uri, self.policy) if doc.blob is None and doc.uri and is_remote(doc.uri, self.policy) else None


def item_content(dataset: Dataset, item: int, cache: ImageCache | None) -> Any:
    """Return the content of one item from the cache; if it is not there, load it and put it there.

    Raises: BadDocument: the document cannot be loaded; the message names it.
    """
    item = dataset.place(item)
    content = None if cache is None else cache.get(item)
    if content is None:
        doc = dataset.document(item)
        try:
            content = dataset.content(doc)
        except FinetunerError as error:
            if repr(doc.id) in str(error):
                raise
            raise BadDocument(f"Document {doc.id!r}: {error}") from error
        except Exception as error:  # a custom preprocess_fn may raise anything
            if is_out_of_memory(error):
                raise  # not the document's fault
            raise BadDocument(f"Document {doc.id!r}: preprocess_fn raised {type(error).__name__}: {error}") from error
        if cache is not None:
            cache.put(item, content)
    return content


def fit_to_model(preprocess: Callable[[Any], Any], preprocessing: Preprocessing) -> Callable[[Any], Any]:
    """Wrap `preprocess` so that images get the size that the model wants; other content passes unchanged."""

    def resized(doc: Any) -> Any:
        content = preprocess(doc)
        return preprocessing.resize(content) if is_image(content) else content

    return resized
