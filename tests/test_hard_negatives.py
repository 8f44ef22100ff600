"""Further negatives of sessions are near, judged by nobody, and seldom pictures that would fit."""

import numpy as np
import pytest

from conftest import coloured
from executor import Document, DocumentArray, SessionDataset, fit
from executor.documents import Match
from executor.loading.content import item_content
from executor.loading.hard_negatives import HarderSessions, find_hard_negatives
from executor.models.building import build_model
from executor.models.model import ModelConfig

CLASSES, SIZE = 12, 24


def planted(sessions: int, per_class: int = 30, seed: int = 0) -> tuple[SessionDataset, np.ndarray, np.ndarray]:
    """Sessions on pictures of known classes, most of which no session judges.

    The classes come in pairs that look alike. A session has a root, two positives of its class and two negatives of far
    classes. Returns: the dataset, the class of each item (N,), and noisy embeddings (N, D) of the items.
    """
    random = np.random.default_rng(seed)
    pairs = np.eye(SIZE)[np.repeat(np.arange(CLASSES // 2), 2)]
    centres = pairs + 0.4 * np.eye(SIZE)[np.arange(CLASSES) + SIZE - CLASSES]
    vectors = centres[np.repeat(np.arange(CLASSES), per_class)]
    vectors = vectors + 0.08 * random.standard_normal(vectors.shape)
    docs, classes, embeddings = DocumentArray(), [], []

    def picture(label: int) -> str:
        number = int(label * per_class + random.integers(per_class))
        classes.append(label)
        embeddings.append(vectors[number])
        return f"{number}.jpg"

    for _ in range(sessions):
        own = int(random.integers(CLASSES))
        far = random.choice([label for label in range(CLASSES) if label // 2 != own // 2], 2)
        root = Document(uri=picture(own))
        root.matches = [
            Match(uri=picture(int(label)), tags={"finetuner_label": sign})
            for label, sign in ((own, 1), (own, 1), (far[0], -1), (far[1], -1))
        ]
        docs.append(root)
    return SessionDataset(docs), np.array(classes), np.array(embeddings, np.float32)


def roots_of(dataset: SessionDataset) -> np.ndarray:
    return np.flatnonzero(dataset.labels[:, 1] == 0)


@pytest.mark.parametrize("sessions", [40, 200])
def test_they_are_near_and_seldom_pictures_that_would_fit(sessions: int):
    dataset, classes, embeddings = planted(sessions)
    session, source = find_hard_negatives(dataset, np.arange(len(dataset)), embeddings, 3)
    own, others = classes[roots_of(dataset)][session], classes[source]
    would_fit = (own == others).mean()
    nearest = _nearest(dataset, embeddings, 3)
    assert would_fit < 0.05
    assert np.mean([classes[roots_of(dataset)][s] == classes[i] for s, i in nearest]) > 0.5, "without the two rules"
    assert (own // 2 == others // 2).mean() > 0.5, "of the class that looks alike; by chance it would be 8 %"
    assert len(session) > 0.5 * 3 * sessions


def _nearest(dataset: SessionDataset, embeddings: np.ndarray, count: int) -> list[tuple[int, int]]:
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = []
    for session, root in enumerate(roots_of(dataset)):
        order = [i for i in np.argsort(-unit @ unit[root]) if dataset.labels[i, 0] != session]
        found += [(session, int(item)) for item in order[:count]]
    return found


def test_what_was_judged_for_the_session_or_is_linked_to_it_by_clicks_is_left_out():
    dataset, _, embeddings = planted(60)
    session, source = find_hard_negatives(dataset, np.arange(len(dataset)), embeddings, 100)
    uris = np.array([dataset.document(item).uri for item in range(len(dataset))])
    judged = {(int(s), uri) for (s, _), uri in zip(dataset.labels, uris, strict=True)}
    assert not judged & {(int(s), uris[item]) for s, item in zip(session, source, strict=True)}
    fits = dataset.labels[:, 1] >= 0
    for one, item in zip(session, source, strict=True):
        mine = set(uris[fits & (dataset.labels[:, 0] == one)])
        sharing = {int(s) for s, uri in zip(dataset.labels[fits, 0], uris[fits], strict=True) if uri in mine}
        assert uris[item] not in set(uris[fits & np.isin(dataset.labels[:, 0], list(sharing))])


def test_a_session_gets_a_picture_once_and_at_most_so_many():
    dataset, _, embeddings = planted(60)
    session, source = find_hard_negatives(dataset, np.arange(len(dataset)), embeddings, 4)
    assert np.bincount(session).max() == 4
    uris = [dataset.document(int(item)).uri for item in source]
    assert len(set(zip(session.tolist(), uris, strict=True))) == len(uris)


def test_an_item_more_has_the_picture_of_its_source_and_belongs_to_its_session():
    dataset, _, _ = planted(3)
    dataset.preprocess_fn = lambda doc: np.full((1,), int(doc.uri.split(".")[0]))
    harder = HarderSessions(dataset, np.array([0, 2]), np.array([7, 1]))
    assert len(harder) == len(dataset) + 2
    assert harder.labels[-2:].tolist() == [[0, -1], [2, -1]]
    assert harder.document(len(dataset)).uri == dataset.document(7).uri
    assert item_content(harder, len(dataset) + 1, None) == item_content(dataset, 1, None)
    assert harder[len(dataset)][1] == (0, -1)
    assert len(dataset) == 15, "the dataset itself stays as it was"


def test_fit_trains_with_them():
    docs = DocumentArray(
        Document(
            uri=f"{n}",
            blob=coloured(n % 4, n),
            matches=[
                Match(uri=f"{n}+", blob=coloured(n % 4, 100 + n), tags={"finetuner_label": 1}),
                Match(uri=f"{n}-", blob=coloured(n + 1, 200 + n), tags={"finetuner_label": -1}),
            ],
        )
        for n in range(12)
    )
    model = build_model(ModelConfig(model="small", input_size=16))
    before = [parameter.clone() for parameter in model.parameters()]
    fit(model, docs, epochs=1, hard_negatives=2, progress=False, preprocess_fn=lambda doc: doc.blob)
    assert any((old != new.cpu()).any() for old, new in zip(before, model.parameters(), strict=True))
