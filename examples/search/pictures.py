"""The pictures: what is trained on, the gallery that is searched, and the queries."""

from dataclasses import dataclass
from pathlib import Path

from examples import demo
from executor import Document, DocumentArray
from executor.documents import LABEL_TAG

SMALL = {"model": "small", "input_size": 32}  # digits have few pixels


@dataclass(frozen=True)
class Pictures:
    """Attributes: gallery: a folder. labels: of its pictures, by their path in it. root: a folder that may be read.

    model: options of the executor. options: of `/fit`.
    """

    train: DocumentArray
    gallery: Path
    queries: DocumentArray
    labels: dict[str, str]
    root: Path
    model: dict[str, object]
    options: dict[str, object]


def digits(output: Path, *, quick: bool) -> Pictures:
    """Write digits: some to train on, some as a gallery in class folders, some as queries."""
    docs = demo.write_digits(output / "digits", count=440 if quick else None)
    queries, shop, train = (docs[:40], docs[40:140], docs[140:]) if quick else (docs[:200], docs[200:800], docs[800:])
    gallery = output / "gallery"
    for doc in shop:
        place = gallery / str(doc.tags[LABEL_TAG]) / f"{doc.id}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((output / "digits" / f"{doc.id}.png").read_bytes())
    options = {"epochs": 3 if quick else 6, "kind": "class"}
    return Pictures(train, gallery, _asking(queries), _labels(gallery), output, SMALL, options)


def photographs(folder: Path, *, quick: bool) -> Pictures:
    """Train on `train/`; every second photograph of `test/` is a query, the whole of it the gallery."""
    train, gallery = demo.labelled(folder / "train"), folder / "test"
    return Pictures(
        train,
        gallery,
        _asking(demo.labelled(gallery)[::2]),
        _labels(gallery),
        folder,
        {},
        {"epochs": 2} if quick else {},
    )


def _asking(docs: DocumentArray) -> DocumentArray:
    """Return the documents with their images alone; the id tells what they show."""
    return DocumentArray(
        Document(id=f"{doc.tags[LABEL_TAG]}/{doc.id}", uri=doc.uri, buffer=doc.buffer, blob=doc.blob) for doc in docs
    )


def _labels(gallery: Path) -> dict[str, str]:
    return {str(path.relative_to(gallery)): path.parent.name for path in sorted(gallery.glob("*/*"))}
