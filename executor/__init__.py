"""Fine-tune image embeddings in the background of a Jina Flow, and serve them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import embed, fit
    from .documents import Document, DocumentArray, Evaluation, Event, RunStatus
    from .images.reading import load_uri_to_image_blob
    from .loading.datasets import ClassDataset, InstanceDataset, SessionDataset
    from .service import FinetunerExecutor
    from .store.spool import DocumentArrayMemmap

__all__ = [
    "ClassDataset",
    "Document",
    "DocumentArray",
    "DocumentArrayMemmap",
    "Evaluation",
    "Event",
    "FinetunerExecutor",
    "InstanceDataset",
    "RunStatus",
    "SessionDataset",
    "embed",
    "fit",
    "load_uri_to_image_blob",
]

_MODULES = {
    "ClassDataset": ".loading.datasets",
    "Document": ".documents",
    "DocumentArray": ".documents",
    "DocumentArrayMemmap": ".store.spool",
    "Evaluation": ".documents",
    "Event": ".documents",
    "FinetunerExecutor": ".service",
    "InstanceDataset": ".loading.datasets",
    "RunStatus": ".documents",
    "SessionDataset": ".loading.datasets",
    "embed": ".api",
    "fit": ".api",
    "load_uri_to_image_blob": ".images.reading",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: the trainer needs no Jina, so it starts seconds sooner."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name], __name__), name)


if __name__ == "user_module":
    # Jina imports the package under this name for `config.yml`. It finds the class only if the import defined it.
    from .service import FinetunerExecutor
