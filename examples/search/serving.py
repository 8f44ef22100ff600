"""The Flow: the FinetunerExecutor, and the vector store behind it."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

from jina import Flow

from examples.search.pictures import Pictures

ROOT = Path(__file__).resolve().parent.parent.parent
# Jina passes a request to those who listen at its endpoint: /search shall embed first. /embed is the last name, because
# each new name of a method takes its first name away.
ALSO_EMBED = {"/search": "embed", "/embed": "embed"}


@contextlib.contextmanager
def served(output: Path, port: int, pictures: Pictures) -> Iterator[None]:
    """Serve the Flow at a port for gRPC, with its workspace and its collections in `output`."""
    options = {"allowed_roots": [str(pictures.root)], "trainer_nice": 0, "trainer_yields": False, **pictures.model}
    flow = (
        Flow(port=port, host="127.0.0.1")
        .add(
            name="finetuner",
            uses=str(ROOT / "config.yml"),
            uses_with=options,
            uses_requests=ALSO_EMBED,
            workspace=str(output / "workspace"),
        )
        .add(
            name="store",
            uses="VectorStore",
            uses_with={"path": str(output / "collections")},
            py_modules=[str(Path(__file__).with_name("store.py"))],
        )
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its banner
        flow.start()
    try:
        yield
    finally:
        flow.close()
