"""Items of a dataset become batches: prepared in advance, augmented by a seed, cached, collated."""

import collections
import gc
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from torch import nn

from conftest import coloured
from executor import ClassDataset, Document, DocumentArray, InstanceDataset
from executor.errors import BadDocument, ConfigurationError
from executor.images.policy import ImagePolicy
from executor.loading.augmentation import Augmentation, default_augmentation, load_augmentation
from executor.loading.batches import collate, model_inputs
from executor.loading.cache import ImageCache
from executor.loading.content import ModelImages
from executor.loading.loader import Loader, ahead
from executor.loading.samplers import ClassSampler, InstanceSampler
from executor.models.preprocessing import Preprocessing

SIZE = 24


def documents(count: int = 12) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 3, number, SIZE), tags={"finetuner_label": number % 3})
        for number in range(count)
    )


def loader(cache: ImageCache | None = None, augment: Augmentation | None = None, seed: int = 0, **options) -> Loader:
    dataset = ClassDataset(documents(), **options)
    sampler = ClassSampler(dataset.labels, batch_size=4, num_items_per_class=2, seed=seed)
    return Loader(dataset, sampler, cache=cache, augment=augment, seed=seed)


@pytest.fixture
def cache(tmp_path: Path):
    opened = ImageCache(SIZE, tmp_path / "images")
    yield opened
    opened.close()


@contextmanager
def no_thread_left() -> Iterator[None]:
    """The threads that are started within have ended at the end, or are about to."""
    tasks = Path("/proc/self/task")
    before = {task.name for task in tasks.iterdir()}
    yield
    while {task.name for task in tasks.iterdir()} - before:  # for ever, until the time limit of tests ends it
        time.sleep(0.01)


# --- ahead --------------------------------------------------------------------------------------------------------


def test_items_come_in_order_and_all_of_them():
    assert list(ahead(iter(range(100)), depth=3)) == list(range(100))
    assert list(ahead(iter([None, None]))) == [None, None]


def test_an_exception_of_the_producer_is_raised_after_what_came_before_it():
    def broken():
        yield 1
        raise ZeroDivisionError("in the thread")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        next(items)


def test_the_thread_ends_with_an_iterator_that_is_abandoned():
    with no_thread_left():
        items = ahead(itertools.count(), depth=2)
        assert next(items) == 0
        del items
        gc.collect()


def test_the_thread_ends_when_the_consumer_fails():
    def consume() -> None:
        for _ in ahead(itertools.count()):
            raise ZeroDivisionError

    with no_thread_left():
        with pytest.raises(ZeroDivisionError):
            consume()
        gc.collect()


def test_no_more_is_made_ahead_than_asked():
    made = []
    items = ahead((made.append(number) or number for number in range(50)), depth=3)
    for taken in range(1, 20):
        next(items)
        assert len(made) <= taken + 3 + 1  # one in the hand of the thread
    items.close()


# --- batches ------------------------------------------------------------------------------------------------------


def test_a_batch_has_images_labels_and_items():
    for batch in loader().epoch(0):
        assert batch.inputs.shape == (len(batch.items), SIZE, SIZE, 3)
        assert batch.inputs.dtype == torch.uint8
        assert batch.labels.tolist() == [item % 3 for item in batch.items.tolist()]
        for image, item in zip(batch.inputs, batch.items, strict=True):
            np.testing.assert_array_equal(image, coloured(item % 3, item, SIZE))


def test_an_epoch_can_begin_at_any_batch():
    whole = list(loader(augment=default_augmentation("class", SIZE)).epoch(1))
    for first in range(len(whole) + 1):
        rest = list(loader(augment=default_augmentation("class", SIZE)).epoch(1, first=first))
        assert [batch.items.tolist() for batch in rest] == [batch.items.tolist() for batch in whole[first:]]
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(rest, whole[first:], strict=True))


@pytest.mark.parametrize("kind", ["class", "unlabeled"])
def test_the_pixels_of_a_batch_depend_on_seed_epoch_and_batch_alone(kind):
    used = loader(augment=default_augmentation(kind, SIZE))
    for epoch in (0, 3, 1):
        list(used.epoch(epoch))
    np.random.seed(1)
    fresh = loader(augment=default_augmentation(kind, SIZE))
    for first, second in zip(used.epoch(2), fresh.epoch(2), strict=True):
        assert torch.equal(first.inputs, second.inputs)


def test_the_same_image_is_augmented_differently_in_every_batch_of_every_epoch_and_seed():
    def first_images(epoch: int, seed: int) -> list[bytes]:
        batches = loader(
            augment=default_augmentation("unlabeled", SIZE), seed=seed, preprocess_fn=lambda doc: coloured(0)
        )
        return [batch.inputs[0].numpy().tobytes() for batch in batches.epoch(epoch)]

    seen = [image for epoch in range(3) for seed in range(2) for image in first_images(epoch, seed)]
    assert len(set(seen)) == len(seen) == 18


def test_two_views_of_a_document_differ_and_carry_one_label():
    dataset = InstanceDataset(documents(6))
    sampler = InstanceSampler(6, batch_size=3)
    augment = default_augmentation("unlabeled", SIZE)
    for batch in Loader(dataset, sampler, augment=augment, views=2).epoch(0):
        half = len(batch.items) // 2
        assert batch.labels[:half].tolist() == batch.labels[half:].tolist()
        assert all(not torch.equal(batch.inputs[i], batch.inputs[half + i]) for i in range(half))


def test_preprocess_fn_is_called_anew_for_every_batch():
    seen: list[str] = []

    def preprocess(doc):
        seen.append(doc.id)
        return doc.blob

    items = [
        int(item) for epoch in (0, 1) for batch in loader(preprocess_fn=preprocess).epoch(epoch) for item in batch.items
    ]
    assert seen == [f"d{item}" for item in items]


def test_a_preprocess_fn_that_fails_is_named_with_its_document():
    def preprocess(doc):
        raise RuntimeError("out of ideas")

    with pytest.raises(BadDocument, match=r"Document 'd\d+': preprocess_fn raised RuntimeError: out of ideas"):
        list(loader(preprocess_fn=preprocess).epoch(0))


def test_a_document_whose_image_cannot_be_read_is_named():
    docs = DocumentArray(
        Document(id=f"d{number}", buffer=b"\x89PNG broken", tags={"finetuner_label": number % 2}) for number in range(4)
    )
    dataset = ClassDataset(docs, ModelImages(Preprocessing(size=SIZE), ImagePolicy()))
    sampler = ClassSampler(dataset.labels, batch_size=4, num_items_per_class=2)
    with pytest.raises(BadDocument, match=r"'d\d'"):
        list(Loader(dataset, sampler).epoch(0))


# --- the cache ----------------------------------------------------------------------------------------------------


def test_cached_and_uncached_batches_are_identical(cache):
    options = {"preprocess_fn": ModelImages(Preprocessing(size=SIZE), ImagePolicy())}
    plain = loader(augment=default_augmentation("class", SIZE), **options)
    cached = loader(cache, default_augmentation("class", SIZE), **options)
    for epoch in (0, 0, 1):  # filled by the first, read by the others
        for first, second in zip(plain.epoch(epoch), cached.epoch(epoch), strict=True):
            assert torch.equal(first.inputs, second.inputs)


def test_what_is_cached_is_not_made_again(cache):
    seen: list[str] = []

    def preprocess(doc):
        seen.append(doc.id)
        return doc.blob

    batches = loader(cache, preprocess_fn=preprocess)
    list(batches.epoch(0))
    list(batches.epoch(1))
    assert sorted(seen) == sorted(f"d{number}" for number in range(12))


def test_an_image_that_was_not_put_is_absent(cache):
    cache.put(3, coloured(0, 0, SIZE))
    assert [index for index in range(6) if cache.get(index) is not None] == [3]
    np.testing.assert_array_equal(cache.get(3), coloured(0, 0, SIZE))


def test_a_black_image_is_present(cache):
    cache.put(0, np.zeros((SIZE, SIZE, 3), np.uint8))
    assert cache.get(0) is not None


def test_images_are_there_again_when_the_file_is_opened_again(cache, tmp_path):
    cache.put(2, coloured(1, 0, SIZE))
    again = ImageCache(SIZE, tmp_path / "images")
    np.testing.assert_array_equal(again.get(2), coloured(1, 0, SIZE))
    again.close()


@pytest.mark.parametrize("name", ["images", "images.sums"])
@pytest.mark.parametrize("lost", [1, 5])
def test_a_truncated_record_is_absent_and_the_others_are_not(cache, tmp_path, name, lost):
    for index in range(3):
        cache.put(index, coloured(index, 0, SIZE))
    file = tmp_path / name
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size - lost)
    assert [cache.get(index) is not None for index in range(3)] == [True, True, False]


@pytest.mark.parametrize("name", ["images", "images.sums"])
def test_a_record_with_a_changed_byte_is_absent_until_it_is_put_again(cache, tmp_path, name):
    for index in range(2):
        cache.put(index, coloured(index, 0, SIZE))
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    assert cache.get(0) is None
    assert cache.get(1) is not None
    cache.put(0, coloured(0, 0, SIZE))
    np.testing.assert_array_equal(cache.get(0), coloured(0, 0, SIZE))


def test_a_cache_keeps_no_more_than_its_bytes(tmp_path):
    record = SIZE * SIZE * 3
    small = ImageCache(SIZE, tmp_path / "images", max_bytes=2 * record)
    for index in range(5):
        small.put(index, coloured(index, 0, SIZE))
    assert [small.get(index) is not None for index in range(5)] == [True, True, False, False, False]
    assert (tmp_path / "images").stat().st_size == 2 * record
    small.close()


def test_a_temporary_cache_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary = ImageCache(SIZE)
    temporary.put(0, coloured(0, 0, SIZE))
    assert list(tmp_path.iterdir())
    temporary.close()
    assert list(tmp_path.iterdir()) == []


# --- collation ----------------------------------------------------------------------------------------------------


def test_other_arrays_are_stacked_as_float32():
    stacked = collate([np.arange(3), np.ones(3), torch.zeros(3)])
    assert stacked.dtype == torch.float32
    assert stacked.tolist() == [[0, 1, 2], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("content", ["words", b"bytes", None, [1, 2]])
def test_a_content_that_is_no_array_is_refused_with_what_to_pass(content):
    with pytest.raises(BadDocument, match=rf"is {type(content).__name__}, not an array; pass a preprocess_fn"):
        collate([np.ones(2), content])


def test_contents_of_different_shapes_are_refused_with_two_of_them():
    with pytest.raises(BadDocument, match=r"different shapes, such as \(2, 2, 3\) and \(4, 2, 3\)"):
        collate([np.ones((4, 2, 3)), np.ones((2, 2, 3))])


def test_a_collate_fn_takes_the_place_of_all_that():
    assert collate(["a", "bc"], lambda contents: [len(content) for content in contents]) == [1, 2]


def test_images_become_channels_first_and_normalised_as_the_model_says():
    model = nn.Identity()
    images = torch.full((2, 4, 4, 3), 255, dtype=torch.uint8)
    assert model_inputs(model, images, torch.device("cpu")).shape == (2, 3, 4, 4)
    assert model_inputs(model, images, torch.device("cpu")).max() == 1.0
    model.preprocessing = Preprocessing(size=4, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert model_inputs(model, images, torch.device("cpu")).unique().tolist() == [2.0]


def test_what_is_no_image_reaches_the_model_as_it_is():
    for inputs in (torch.ones(2, 5), torch.ones((2, 3, 4, 4), dtype=torch.uint8), {"a": 1}, ["words"]):
        assert model_inputs(nn.Identity(), inputs, torch.device("cpu")) is inputs


# --- configured augmentation --------------------------------------------------------------------------------------


def flip() -> albumentations.Compose:
    return albumentations.Compose(
        [albumentations.HorizontalFlip(p=1.0), albumentations.RandomBrightnessContrast(p=0.0)]
    )


@pytest.mark.parametrize("form", ["dict", "json", "yaml"])
def test_a_serialised_pipeline_is_loaded(form, tmp_path):
    if form == "dict":
        configured = albumentations.to_dict(flip())
    else:
        configured = str(tmp_path / f"pipeline.{form}")
        albumentations.save(flip(), configured, data_format=form)
    image = coloured(0)
    augment = load_augmentation(configured, "class", SIZE)
    augment.seed(0)
    np.testing.assert_array_equal(augment(image), image[:, ::-1])


@pytest.mark.parametrize(
    "configured",
    [
        {},
        {"transform": {"__class_fullname__": "NoSuchTransform"}},
        {"transform": 3},
        "absent.yaml",
        "absent.json",
        "broken.yaml",
        "broken.json",
    ],
    ids=str,
)
def test_what_is_no_pipeline_is_a_configuration_error_that_says_what_is(configured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("broken.yaml", "broken.json"):
        Path(name).write_text("{unfinished: [")
    with pytest.raises(ConfigurationError, match=r"augment is not a pipeline.*albumentations\.to_dict"):
        load_augmentation(configured, "class", SIZE)


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        ([ToTensorV2()], "Tensor"),
        ([albumentations.Normalize(), ToTensorV2()], "Tensor"),
        ([albumentations.Normalize()], "ndarray (float32"),
        ([albumentations.ToFloat(max_value=255)], "ndarray (float32"),
        ([albumentations.ToGray(num_output_channels=1, p=1)], "ndarray (uint8"),
    ],
)
def test_a_pipeline_that_does_not_end_in_images_is_refused_when_it_is_loaded(steps, named):
    with pytest.raises(ConfigurationError, match="leave out Normalize, ToFloat, ToTensorV2") as refused:
        load_augmentation(albumentations.to_dict(albumentations.Compose(steps)), "class", SIZE)
    assert f"augment turns an image into {named}" in str(refused.value)


def test_a_pipeline_that_only_sometimes_ends_in_floats_is_refused_when_it_does():
    augment = Augmentation(albumentations.Compose([albumentations.Normalize(p=0.5)]))
    augment.seed(0)
    with pytest.raises(ConfigurationError, match=r"into ndarray \(float32"):
        collections.deque(map(augment, [coloured(0)] * 50), maxlen=0)


def test_a_pipeline_that_fails_on_images_of_the_models_size_is_refused_with_its_reason():
    larger = albumentations.Compose([albumentations.CenterCrop(2 * SIZE, 2 * SIZE)])
    with pytest.raises(ConfigurationError, match=f"augment fails on an image of {SIZE}×{SIZE} pixels.*CropSizeError"):
        load_augmentation(albumentations.to_dict(larger), "class", SIZE)


@pytest.mark.parametrize("side", [SIZE // 2, 2 * SIZE])
def test_an_augmented_image_has_the_size_that_the_model_sees(side):
    resized = albumentations.to_dict(albumentations.Compose([albumentations.Resize(side, side)]))
    augment = load_augmentation(resized, "class", SIZE)
    assert augment is not None
    image = coloured(0, size=SIZE)
    assert augment(image).shape == image.shape
    assert abs(augment(image).mean() - image.mean()) < 3


def test_a_yaml_file_cannot_run_code(tmp_path):
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']\n")
    with pytest.raises(ConfigurationError):
        load_augmentation(str(evil), "class", SIZE)
    assert not (tmp_path / "made").exists()


def test_augmentation_can_be_turned_off_and_leaves_what_is_no_image():
    assert load_augmentation("none", "class", SIZE) is None
    vector = np.ones(5)
    assert default_augmentation("class", SIZE)(vector) is vector
