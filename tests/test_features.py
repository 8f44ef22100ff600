"""Only the head is trained, on features of a frozen backbone that are computed once and kept."""

import copy
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import coloured
from executor import ClassDataset, Document, DocumentArray, InstanceDataset, fit, load_uri_to_image_blob
from executor.documents import Match, RunStatus
from executor.errors import BadDocument
from executor.loading.augmentation import default_augmentation
from executor.loading.cache import FeatureCache
from executor.loading.loader import Loader
from executor.loading.samplers import ClassSampler, InstanceSampler
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.saving import load_model
from executor.training.config import TrainConfig
from executor.training.features import FeatureLoader, Filling, Trainee, choose_trainee
from serving import Service, served

pytestmark = pytest.mark.compute

SIZE = 16
COUNT = 24
CPU = torch.device("cpu")


def labelled(count: int = COUNT, first: int = 0) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % 3, number, SIZE), tags={"finetuner_label": number % 3})
        for number in range(first, first + count)
    )


def sessions() -> DocumentArray:
    def match(number: int, fits: bool) -> Match:
        blob = coloured(number % 3 if fits else (number + 1) % 3, 100 + number, SIZE)
        return Match(id=f"m{number}-{fits}", blob=blob, tags={"finetuner_label": 1 if fits else -1})

    return DocumentArray(
        Document(id=f"s{n}", blob=coloured(n % 3, n, SIZE), matches=[match(n, True), match(n, False)])
        for n in range(COUNT)
    )


def frozen(seed: int = 0, freeze: Any = True, size: int = SIZE) -> EmbeddingModel:
    return build_model(ModelConfig(model="small", input_size=size, freeze=freeze, seed=seed, embedding_dim=32))


def tune(docs: Any = None, **options: Any) -> EmbeddingModel:
    settings = {"epochs": 3, "batch_size": 12, "precision": "fp32", "device": "cpu", "progress": False}
    model = options.pop("model", None) or frozen()
    return fit(model, labelled() if docs is None else docs, **(settings | options))


class Images:
    """How many images go through a model's backbone in training, by a hook."""

    def __init__(self, model: EmbeddingModel) -> None:
        self.count = 0
        model.backbone.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple[torch.Tensor], output: Any) -> None:
        self.count += len(inputs[0])


class Watched:
    """What `choose_trainee` says and how much is computed."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.computed = 0

    def filled(self, filling: Filling) -> None:
        if filling.done == filling.total:
            self.computed += filling.total


def on_features(
    folder: Path | None,
    watched: Watched | None = None,
    *,
    model: EmbeddingModel | None = None,
    unlabeled: bool = False,
    augment: bool = True,
    asked: int | None = None,
    max_bytes: int = 2**30,
    same_content: bool = True,
    filled: Callable[[Filling], None] | None = None,
    at_once: int = 128,
    count: int = COUNT,
) -> Trainee:
    watched = watched or Watched()
    pipeline = default_augmentation("unlabeled", SIZE) if augment else None  # no two views of it are the same
    if unlabeled:
        instances = InstanceDataset(labelled(count))
        loader = Loader(instances, InstanceSampler(count, batch_size=6), augment=pipeline, views=2)
    else:
        dataset = ClassDataset(labelled(count))
        sampler = ClassSampler(dataset.labels, batch_size=12, num_items_per_class=4)
        loader = Loader(dataset, sampler, augment=pipeline)
    return choose_trainee(
        model or frozen(),
        loader,
        TrainConfig(bf16=False),
        asked,
        same_content=same_content,
        device=CPU,
        max_bytes=max_bytes,
        folder=folder,
        at_once=at_once,
        say=watched.said.append,
        filled=filled or watched.filled,
    )


def epochs(trained: Trainee, *numbers: int) -> list[tuple[list[int], np.ndarray]]:
    """The items and the features of every batch of these epochs."""
    return [
        (batch.items.tolist(), batch.inputs.numpy()) for number in numbers for batch in trained.loader.epoch(number)
    ]


def by_item(batches: list[tuple[list[int], np.ndarray]]) -> dict[int, np.ndarray]:
    return {item: vector for items, vectors in batches for item, vector in zip(items, vectors, strict=True)}


def same(one: list[tuple[list[int], np.ndarray]], other: list[tuple[list[int], np.ndarray]]) -> bool:
    """Whether items are equal, and features within what the size of a batch does to rounding."""
    return len(one) == len(other) and all(
        a[0] == b[0] and np.allclose(a[1], b[1], rtol=1e-4, atol=1e-5) for a, b in zip(one, other, strict=True)
    )


# what comes out is what came out without -----------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [labelled, sessions])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9, "wise_ft": 0.5}, {"micro_batch": 5}])
def test_training_on_kept_features_ends_with_the_weights_of_training_on_images(documents, options) -> None:
    held_out = labelled(9, first=100) if documents is labelled else sessions()
    on_images = tune(documents(), eval_data=held_out, feature_views=0, **options)
    kept = tune(documents(), eval_data=held_out, **options)
    moved = float((on_images.head.weight - frozen().head.weight).detach().abs().max())
    differ = float((on_images.head.weight - kept.head.weight).detach().abs().max())
    assert moved > 1e-4
    assert differ < moved / 100
    assert not kept.training


def test_what_is_evaluated_is_the_whole_model_with_the_head_that_is_measured() -> None:
    model = frozen()
    trained = on_features(None, model=model)
    average = copy.deepcopy(trained.model)
    with torch.no_grad():
        average.head.weight.mul_(torch.linspace(0, 1, 32)[:, None])
    images = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = nn.functional.normalize(average.head(model.extract_features(images)))
        torch.testing.assert_close(trained.whole(average)(images), expected)
        assert not torch.allclose(model(images), expected)
    trained.close()


def test_each_image_goes_through_a_frozen_backbone_once() -> None:
    model = frozen()
    images = Images(model)
    tune(model=model, epochs=5)
    extra = 12  # one batch looks for the faster precision or for shapes, whatever the number of epochs
    assert COUNT <= images.count <= COUNT + extra


def test_a_frozen_backbone_stays_as_it_was_to_the_last_bit() -> None:
    before = {name: tensor.clone() for name, tensor in frozen().backbone.state_dict().items()}
    after = tune().backbone.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


@pytest.mark.parametrize("freeze", [False, ("stem", "stage1")])
def test_a_backbone_that_trains_is_given_the_images_every_time(freeze) -> None:
    watched = Watched()
    trained = on_features(None, watched, model=frozen(freeze=freeze), asked=2)
    assert not isinstance(trained.loader, FeatureLoader)
    assert "feature_views has no effect" in watched.said[0]


def test_a_preprocess_fn_is_called_anew_for_every_batch_unless_features_are_asked_for() -> None:
    calls: list[str] = []

    def counting(doc: Any) -> np.ndarray:
        calls.append(doc.id)
        return doc.blob

    tune(preprocess_fn=counting, epochs=3)
    anew = len(calls)
    calls.clear()
    tune(preprocess_fn=counting, epochs=3, feature_views=1)
    assert anew >= 3 * COUNT
    assert len(calls) <= COUNT + 1  # one more to see its shape


def test_the_loading_function_of_the_package_gives_the_same_each_time_so_that_features_are_kept() -> None:
    model = frozen()
    images = Images(model)
    tune(model=model, preprocess_fn=load_uri_to_image_blob, epochs=5)
    assert images.count <= COUNT + 12


# views ---------------------------------------------------------------------------------------------------------------


def test_four_views_of_a_document_take_turns_and_are_then_kept() -> None:
    watched = Watched()
    trained = on_features(None, watched)
    first = by_item(epochs(trained, 0))
    assert watched.computed == COUNT
    others = [by_item(epochs(trained, number)) for number in (1, 2, 3)]
    assert watched.computed == 4 * COUNT
    assert all(not np.allclose(first[item], other[item]) for other in others for item in first)
    epochs(trained, *range(4, 12))
    assert watched.computed == 4 * COUNT
    trained.close()


def test_a_resumed_run_sees_the_views_that_it_would_have_seen() -> None:
    straight, resumed = on_features(None), on_features(None)
    expected = epochs(straight, *range(7))[6 * len(straight.loader.sampler.batches(0)) :]
    assert same(epochs(resumed, 6), expected)
    assert [batch.items.tolist() for batch in resumed.loader.epoch(6, first=1)] == [items for items, _ in expected[1:]]
    for trained in (straight, resumed):
        trained.close()


def test_the_two_views_of_an_unlabeled_document_in_a_batch_differ() -> None:
    trained = on_features(None, unlabeled=True)
    for items, vectors in epochs(trained, 0, 1, 2):
        half = len(items) // 2
        assert items[:half] == items[half:]
        assert all(not np.allclose(one, other) for one, other in zip(vectors[:half], vectors[half:], strict=True))
    trained.close()


def test_a_document_that_is_twice_in_a_batch_is_there_in_two_views() -> None:
    trained = on_features(None, count=7)  # groups of 4 of 3 labels: all of them are filled up
    repeated = 0
    for items, vectors in epochs(trained, 0):
        for item in set(items):
            of_item = [vector for other, vector in zip(items, vectors, strict=True) if other == item]
            repeated += len(of_item) - 1
            assert all(not np.allclose(of_item[0], other) for other in of_item[1:])
    assert repeated
    trained.close()


# what is kept --------------------------------------------------------------------------------------------------------


def test_features_are_there_again_when_a_run_goes_on(tmp_path) -> None:
    began, resumed = Watched(), Watched()
    expected = epochs(on_features(tmp_path, began), 0)
    assert same(epochs(on_features(tmp_path, resumed), 0), expected)
    assert (began.computed, resumed.computed) == (COUNT, 0)


def test_a_run_that_was_stopped_while_features_were_computed_goes_on_with_the_rest(tmp_path) -> None:
    class Stopped(Exception):
        pass

    def stop(filling: Filling) -> None:
        if filling.done == 10:
            raise Stopped

    with pytest.raises(Stopped):
        epochs(on_features(tmp_path, filled=stop, at_once=5), 0)
    watched = Watched()
    epochs(on_features(tmp_path, watched), 0)
    assert watched.computed == COUNT - 10


@pytest.mark.parametrize(
    "change",
    [{"model": frozen(seed=1)}, {"model": frozen(size=24)}, {"augment": False}, {"asked": 2}, {"unlabeled": True}],
    ids=["weights", "preprocessing", "augmentation", "views", "kind"],
)
def test_features_of_something_else_are_not_used(tmp_path, change) -> None:
    epochs(on_features(tmp_path), 0)
    watched = Watched()
    epochs(on_features(tmp_path, watched, **change), 0)
    assert watched.computed >= COUNT


@pytest.mark.parametrize("suffix", ["", ".sums"])
def test_a_damaged_row_is_computed_again(tmp_path, suffix) -> None:
    expected = epochs(on_features(tmp_path, augment=False), 0)
    file = next(path for path in tmp_path.iterdir() if path.name.endswith(".sums") is bool(suffix))
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    watched = Watched()
    assert same(epochs(on_features(tmp_path, watched, augment=False), 0), expected)
    assert watched.computed == 1


def test_a_row_that_was_not_put_cannot_be_read() -> None:
    cache = FeatureCache(4, 2)
    cache.put(np.array([1, 3]), np.ones((2, 2)))
    assert cache.missing(np.array([3, 2, 1, 0, 2])).tolist() == [0, 2]
    assert cache.get(np.array([3, 1])).tolist() == [[1, 1], [1, 1]]
    with pytest.raises(KeyError, match=r"rows \[2\]"):
        cache.get(np.array([1, 2]))
    cache.close()


def test_a_full_disk_changes_nothing_but_the_speed(tmp_path) -> None:
    expected = epochs(on_features(None), 0, 1)
    watched = Watched()
    trained = on_features(tmp_path, watched, at_once=5)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (COUNT * 4 * 256 * 4 // 2, before[1]))  # half of the rows
    try:
        assert same(epochs(trained, 0, 1), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(watched.said) == 1
    assert "Features that are not kept are computed whenever they are needed." in watched.said[0]


def test_a_document_that_cannot_be_loaded_is_named() -> None:
    docs = labelled()
    docs[5].blob = None
    with pytest.raises(BadDocument, match="'d5'"):
        tune(docs)


# bounds --------------------------------------------------------------------------------------------------------------


def test_fewer_views_are_kept_where_all_would_take_too_much_room() -> None:
    watched = Watched()
    one_view = COUNT * 256 * 4
    trained = on_features(None, watched, max_bytes=2 * one_view + 100)
    epochs(trained, *range(6))
    assert watched.computed == 2 * COUNT
    assert "2 views of each document are kept, not 4" in watched.said[0]
    trained.close()


@pytest.mark.parametrize("unlabeled", [False, True])
def test_images_go_through_the_backbone_where_too_few_views_fit(unlabeled) -> None:
    watched = Watched()
    one_view = COUNT * 256 * 4
    trained = on_features(None, watched, unlabeled=unlabeled, max_bytes=(2 if unlabeled else 1) * one_view - 1)
    assert not isinstance(trained.loader, FeatureLoader)
    assert "are not kept" in watched.said[0]


def test_nothing_temporary_is_left_behind(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tune()
    assert list(tmp_path.iterdir()) == []


# in the service ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Flow that augments: else there is one view of each document."""
    with served(tmp_path_factory.mktemp("augmenting"), augment=None) as running:
        yield running


@pytest.fixture(scope="module")
def run(service: Service) -> Iterator[RunStatus]:
    """A run that trained the head alone, with eval documents, in bf16."""
    service.post("/fit", labelled(12, first=100), returns=RunStatus, run="head", split="eval", freeze=True, epochs=6)
    service.post("/fit", labelled(), returns=RunStatus, run="head", total=COUNT, precision="bf16")
    return service.wait("head")


@pytest.mark.flow
def test_a_run_reports_how_many_features_were_computed_in_what_time(service, run) -> None:
    assert run.state == "succeeded", run.error
    events = service.http("/events", run="head").json()["data"]
    computed = [event["message"] for event in events if event["kind"] == "features"]
    assert [int(message.split()[0]) for message in computed] == [COUNT] * 4
    assert "features of the frozen backbone were computed in" in computed[0]


@pytest.mark.flow
def test_the_tuned_model_is_the_base_with_another_head(service, run) -> None:
    base = load_model(service.run_folder("head").parent.parent / "base")
    tuned = load_model(service.run_folder("head") / "model")
    names = base.backbone.state_dict()
    assert all(torch.equal(names[name], tensor) for name, tensor in tuned.backbone.state_dict().items())
    assert not torch.equal(base.head.weight, tuned.head.weight)


@pytest.mark.flow
def test_an_ended_run_keeps_no_features(service, run) -> None:
    assert not (service.run_folder("head") / "features").exists()
