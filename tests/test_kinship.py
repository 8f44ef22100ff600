"""Which documents of a run belong together: sessions, groups, copies of one picture."""

import numpy as np

from executor import ClassDataset, Document, DocumentArray, SessionDataset
from executor.documents import Match
from executor.evaluation.kinship import Kinship, Side, find_kinship, flattery, print_of


def photograph(seed: int, size: int = 64) -> np.ndarray:
    """Noise with the spectrum of a photograph, 1/f, (size, size, 3) uint8."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(random.normal(size=(3, size, size))) / frequency
    image = np.real(np.fft.ifft2(spectrum)).transpose(1, 2, 0)
    return np.clip(128 + 45 * image / image.std(), 0, 255).astype(np.uint8)


def side(images: list[np.ndarray | None], groups: list[str | None] | None = None) -> Side:
    docs = DocumentArray(Document(text="x", tags={"finetuner_label": number % 3}) for number in range(len(images)))
    prints = [None if image is None else print_of(image, number) for number, image in enumerate(images)]
    return Side(ClassDataset(docs), groups or [None] * len(images), prints)


def kinship(
    train: list[np.ndarray | None], eval: list[np.ndarray | None] | None = None, **groups: list[str | None]
) -> Kinship:
    images = {True: train, False: eval or []}
    others = None if eval is None else side(eval, groups.get("of_eval"))

    def image(trained: bool, number: int) -> np.ndarray:
        found = images[trained][number]
        assert found is not None
        return found

    return find_kinship(side(train, groups.get("of_train")), others, image)


def test_pictures_of_their_own_belong_to_nothing() -> None:
    found = kinship([photograph(seed) for seed in range(12)], [photograph(100 + seed) for seed in range(5)])
    assert len(set(found.train)) == 12
    assert not found.related.any()
    assert found.copies == 0


def test_copies_among_the_train_documents_belong_together() -> None:
    images = [photograph(seed) for seed in range(6)]
    mirrored = np.ascontiguousarray(images[2][:, ::-1])
    found = kinship([*images, images[1], mirrored])
    assert found.train[6] == found.train[1]
    assert found.train[7] == found.train[2]
    assert len(set(found.train)) == 6
    assert found.copies == 2
    assert found.pairs == [(1, 6), (2, 7)]


def test_an_eval_document_that_is_a_copy_of_a_train_document_is_related() -> None:
    images = [photograph(seed) for seed in range(6)]
    brighter = np.clip(images[4].astype(int) + 12, 0, 255).astype(np.uint8)
    found = kinship(images, [photograph(50), brighter, photograph(51)])
    assert found.related.tolist() == [False, True, False]


def test_a_group_on_both_sides_is_related() -> None:
    images = [photograph(seed) for seed in range(5)]
    found = kinship(images[:3], images[3:], of_train=["'a'", None, "'a'"], of_eval=["'a'", "'b'"])
    assert found.train[0] == found.train[2] != found.train[1]
    assert found.related.tolist() == [True, False]


def test_documents_that_cannot_be_used_are_alone() -> None:
    found = kinship([photograph(0), None, photograph(0), None])
    assert found.train[0] == found.train[2]
    assert len(set(found.train)) == 3


def test_the_items_of_a_session_belong_together_and_its_root_decides_what_is_a_copy() -> None:
    def session(number: int) -> Document:
        matches = [Match(text="x", tags={"finetuner_label": label}) for label in (1, -1)]
        return Document(id=str(number), text="x", matches=matches)

    images = [photograph(0), photograph(1), photograph(0)]
    prints = [print_of(image, number) for number, image in enumerate(images)]
    dataset = SessionDataset(DocumentArray(session(number) for number in range(3)))
    found = find_kinship(Side(dataset, [None] * 3, list(prints)), None, lambda _, number: images[number])
    assert found.train.tolist() == [found.train[0]] * 3 + [found.train[3]] * 3 + [found.train[0]] * 3


def test_pictures_that_are_nearly_those_of_the_training_are_warned_of_and_others_are_not() -> None:
    images = [photograph(seed) for seed in range(40)]
    bursts = [
        np.clip(image.astype(int) + np.random.default_rng(1).normal(0, 9, image.shape), 0, 255).astype(np.uint8)
        for image in images
    ]
    docs = DocumentArray(Document(text="x", tags={"finetuner_label": number % 4}) for number in range(80))
    prints = [print_of(image, number) for number, image in enumerate([*images, *bursts])]
    whole = Side(ClassDataset(docs), [None] * 80, list(prints))
    first, second = np.arange(40), np.arange(40, 80)
    said = flattery(whole, first, whole, second) or ""
    assert "the figures may flatter" in said
    assert "--group-column" in said
    assert flattery(whole, first[:20], whole, first[20:]) is None
