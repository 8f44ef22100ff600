"""Fine-tune image embeddings in the background of a Jina Flow, and serve them."""

import importlib
import os
import sys
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


def _ease_gateways() -> None:
    """Before a Flow forks its gateway, let that be as easy to call as our doors, whatever of us was imported."""
    if "jina" in sys.modules:
        importlib.import_module(".documents", __name__)  # which has large integers sent
        importlib.import_module(".wire.refusals", __name__).ease_gateways()


os.register_at_fork(before=_ease_gateways)

if __name__ == "user_module":
    # Jina imports the package under this name for `config.yml`. It finds the class only if the import defined it.
    from .service import FinetunerExecutor
