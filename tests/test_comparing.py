"""Two versions are compared on documents that came later."""

from collections.abc import Callable, Iterator

import pytest
import torch

from conftest import coloured, images
from executor import Document
from executor.documents import GROUP_TAG, Match
from executor.evaluation.kinship import print_of
from executor.models.saving import save_model
from executor.models.versions import WorkspaceVersions, load_version
from executor.parameters import parse_executor_options
from executor.serving import comparing
from executor.serving.comparing import is_worse
from executor.serving.embedder import Embedder
from executor.store.lineage import Lineage, key_of_group
from executor.store.spool_rows import content_digest
from executor.store.workspace import Workspace

pytestmark = pytest.mark.compute


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """It has two versions: `base`, which tells colours apart, and `blind`, which sees nothing but noise."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    options = parse_executor_options({"model": "small", "input_size": 16}).with_roots()
    blind = load_version(workspace, options, "base")
    with torch.no_grad():
        for parameter in blind.parameters():
            parameter.mul_(0.0)
        for name, parameter in blind.named_parameters():
            if name.endswith("bias"):
                parameter.add_(1.0)
    save_model(blind, workspace.model_folder("blind"))
    embedder = Embedder(WorkspaceVersions(workspace, options, lambda: "base"), options)
    yield embedder
    embedder.close()


def labelled() -> Iterator[Document]:
    """Some have a wrong label: where all queries of few classes do alike, nothing is proven."""
    for number, doc in enumerate(images(40, classes=4)):
        if number % 7 == 0:
            doc.tags["finetuner_label"] = number % 3
        yield doc


def sessions(count: int) -> Iterator[Document]:
    for number in range(count):
        matches = [
            Match(blob=coloured(number + off, 100 * number + off), tags={"finetuner_label": 1 if off == 0 else -1})
            for off in (0, 1)
        ]
        yield Document(id=f"q{number}", blob=coloured(number, number), matches=matches)


@pytest.mark.parametrize("kind", ["class", "session"])
def test_a_version_that_is_worse_is_said_to_be_and_one_that_is_not_is_not(embedder: Embedder, kind: str):
    def docs() -> Iterator[Document]:
        yield Document(id="broken", uri="data:,x", tags={"finetuner_label": 1})
        yield from labelled() if kind == "class" else sessions(40)

    sentence = is_worse(embedder, "base", "blind", kind, docs(), 0.1)
    assert sentence is not None
    assert "From 'blind' to 'base' on feedback that came later, mAP@R went from" in sentence
    assert "80 % interval" in sentence
    assert is_worse(embedder, "blind", "base", kind, docs(), 0.1) is None
    assert is_worse(embedder, "base", "base", kind, docs(), 0.1) is None


def of_customers(count: int) -> Iterator[Document]:
    for number, doc in enumerate(sessions(40)):
        doc.tags[GROUP_TAG] = number % count
        yield doc


def on_pictures(count: int) -> Iterator[Document]:
    clicks = list(sessions(40))
    for number, doc in enumerate(clicks):
        same = clicks[number % count]
        yield Document(id=doc.id, blob=same.blob, matches=same.matches)


@pytest.mark.parametrize("clicks", [of_customers, on_pictures])
def test_words_of_one_customer_or_on_one_picture_count_as_one(
    embedder: Embedder, clicks: Callable[[int], Iterator[Document]]
):
    assert is_worse(embedder, "base", "blind", "session", clicks(1), 0.1) is None
    sentence = is_worse(embedder, "base", "blind", "session", clicks(20), 0.1)
    assert sentence is not None
    assert "on 40 queries of 20 groups: " in sentence


@pytest.mark.parametrize("version", ["base", "blind"])
@pytest.mark.parametrize("known_by", ["what was sent", "its picture", "its group"])
def test_what_a_version_was_trained_on_proves_nothing(embedder: Embedder, version: str, known_by: str):
    clicks = list(of_customers(20))
    picture = embedder.version("base").preprocess
    keys = {
        "what was sent": [content_digest(doc) for doc in clicks],
        "its picture": [print_of(picture(doc), 0).digest for doc in clicks],
        "its group": [key_of_group(str(number)) for number in range(20)],
    }[known_by]

    def sentence(*taught: bytes) -> str | None:
        seen = {version: Lineage(taught=frozenset(taught))}
        return is_worse(
            embedder, "base", "blind", "session", iter(clicks), 0.1, lineage=lambda name: seen.get(name, Lineage())
        )

    assert sentence(*keys) is None
    left = sentence(*keys[: len(keys) // 2])
    assert left is not None
    assert f"on 20 {'queries of 10 groups' if known_by == 'its group' else 'sessions'}" in left


def test_the_first_documents_count_where_there_are_more_than_are_looked_at(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(comparing, "MOST", 30)
    taught = [content_digest(doc) for doc in sessions(10)]
    read = iter(list(sessions(80)))
    known = Lineage(taught=frozenset(taught))
    sentence = is_worse(embedder, "base", "blind", "session", read, 0.1, lineage=lambda name: known)
    assert sentence is not None
    assert "on 30 sessions" in sentence
    assert next(read).id == "q40", "those that prove nothing do not count"


def test_too_little_feedback_proves_nothing(embedder: Embedder):
    assert is_worse(embedder, "base", "blind", "class", iter(()), 0.01) is None
    assert is_worse(embedder, "base", "blind", "class", iter(images(2, classes=2)), 0.01) is None


def test_it_ends_in_the_middle_where_nobody_waits_for_it_any_more(embedder: Embedder):
    asked = []

    def is_ended() -> bool:
        asked.append(None)
        return len(asked) > 42  # it has looked at 40 documents, and embeds them, 16 at a time

    assert is_worse(embedder, "base", "blind", "class", labelled(), 0.1, is_ended=is_ended) is None
    assert len(asked) == 43
