"""`fit` and `embed` in Python: with any module, any documents, and the examples of the data format unchanged."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from docarray import BaseDoc
from docarray.typing import NdArray
from torch import nn

from conftest import coloured, encoded
from executor import (
    ClassDataset,
    Document,
    DocumentArray,
    DocumentArrayMemmap,
    InstanceDataset,
    SessionDataset,
    api,
    embed,
    fit,
    load_uri_to_image_blob,
)
from executor.documents import Match
from executor.errors import BadDocument, BadRequest, ConfigurationError, InvalidParameter, NotTrainable
from executor.evaluation.eval_set import EvalSet
from executor.models.building import build_model
from executor.models.model import ModelConfig

pytestmark = pytest.mark.compute

CLASSES = 4
QUICK = {
    "epochs": 2,
    "batch_size": 8,
    "num_items_per_class": 2,
    "precision": "fp32",
    "progress": False,
    "device": "cpu",
}


def tune(model: nn.Module, train_data: Any, eval_data: Any = None, **options: Any) -> nn.Module:
    return fit(model, train_data, eval_data, **(QUICK | options))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    yield
    torch.set_num_threads(threads)


def perceptron(size: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, 8))


class Convolutions(nn.Module):
    """(B, 3, H, W) in [0, 1] -> (B, 8)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 8)
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels)


def vector(label: int, seed: int) -> np.ndarray:
    centre = np.random.default_rng([99, label]).normal(size=6)
    return centre + np.random.default_rng([label, seed]).normal(size=6)


def vectors(count: int = 24, first_seed: int = 0) -> DocumentArray:
    return DocumentArray(
        Document(
            id=f"d{number}",
            blob=vector(number % CLASSES, first_seed + number),
            tags={"finetuner_label": number % CLASSES},
        )
        for number in range(count)
    )


def pictures(count: int = 16) -> DocumentArray:
    return DocumentArray(
        Document(id=f"d{number}", blob=coloured(number % CLASSES, number), tags={"finetuner_label": number % CLASSES})
        for number in range(count)
    )


def sessions(count: int = 8) -> DocumentArray:
    return DocumentArray(
        Document(
            id=f"s{number}",
            blob=vector(number % CLASSES, number),
            matches=[
                Match(blob=vector((number + other) % CLASSES, 50 + number), tags={"finetuner_label": label})
                for other, label in ((0, 1), (0, 1), (1, -1), (2, -1))
            ],
        )
        for number in range(count)
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().cpu() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    return any(not torch.equal(before[name], tensor.cpu()) for name, tensor in model.state_dict().items())


# --- the examples of the data format ------------------------------------------------------------------------------


def test_the_example_that_loads_uris_runs_as_it_stands(tmp_path):
    def documents(numbers: range) -> DocumentArray:
        docs = DocumentArray()
        for number in numbers:
            path = tmp_path / f"{number}.png"
            path.write_bytes(encoded(coloured(number % CLASSES, number)))
            docs.append(Document(uri=str(path), tags={"finetuner_label": number % CLASSES}))
        return docs

    dataset, held_out, model = documents(range(12)), documents(range(12, 24)), Convolutions()
    before = weights(model)

    def load_image(d: Document) -> np.ndarray:
        d.load_uri_to_image_blob()
        return d.blob

    fit(model, train_data=dataset, eval_data=held_out, preprocess_fn=load_image)
    assert changed(before, model)


def test_the_example_that_augments_runs_as_it_stands(monkeypatch):
    warned_of = []  # that a process says it once only: test_images.py
    monkeypatch.setattr(api, "warn_channels_first", warned_of.append)
    dataset = DocumentArray([
        Document(blob=np.random.rand(3, 128, 128), tags={'finetuner_label': 1}),
        Document(blob=np.random.rand(3, 128, 128), tags={'finetuner_label': 1}),
        Document(blob=np.random.rand(3, 128, 128), tags={'finetuner_label': 2}),
        Document(blob=np.random.rand(3, 128, 128), tags={'finetuner_label': 2}),
    ])  # fmt: skip

    def augment_image(doc: Document) -> np.ndarray:
        transform = A.Compose([
            A.HorizontalFlip(p=0.5),
            A.RandomBrightnessContrast(p=0.2),
        ])  # fmt: skip
        return transform(image=doc.blob)['image']  # fmt: skip

    model = Convolutions()
    before = weights(model)
    fit(model, train_data=dataset, preprocess_fn=augment_image)
    assert changed(before, model)
    assert set(warned_of) == {(3, 128, 128)}


def test_the_function_that_leaves_documents_as_they_are_is_a_preprocess_fn(tmp_path):
    docs = pictures()
    for number, doc in enumerate(docs):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encoded(doc.blob))
        doc.uri, doc.blob = str(path), None
    tune(Convolutions(), docs, preprocess_fn=load_uri_to_image_blob)
    assert all(doc.blob is None for doc in docs)


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "docs"), [(perceptron, vectors), (Convolutions, pictures)], ids=["vectors", "images"])
def test_any_module_is_trained_in_place_and_returned_in_evaluation_mode(make, docs):
    model = make()
    before = weights(model)
    assert tune(model, docs()) is model
    assert not model.training
    assert changed(before, model)


def test_a_tuned_model_finds_more_than_before():
    random = np.random.default_rng(0)
    docs = vectors(60)
    for doc in docs:
        doc.blob = np.concatenate([doc.blob, 4 * random.normal(size=6)])  # the signal beside loud noise
    train, held = docs[:40], docs[40:]

    def precision(model: nn.Module) -> float:
        embed(held, model, device="cpu")
        embedded = np.stack([doc.embedding for doc in held])
        near = (embedded @ embedded.T - 2 * np.eye(len(held))).argmax(axis=1)
        labels = np.asarray([doc.tags["finetuner_label"] for doc in held])
        return float((labels[near] == labels).mean())

    model = perceptron(12)
    before = precision(model)
    tune(model, train, epochs=20, learning_rate=1e-2)
    assert precision(model) > before


def test_the_same_seed_gives_the_same_model():
    first, second = (tune(perceptron(), vectors(), seed=3) for _ in range(2))
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in second.state_dict().items())


def test_a_model_with_an_output_like_those_of_transformers_is_trained():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()

        def forward(self, inputs: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(pooler_output=self.inner(inputs), last_hidden_state=None)

    model = Pooled()
    before = weights(model)
    assert changed(before, tune(model, vectors()))


@pytest.mark.parametrize("wrap", [lambda out: (out, out), lambda out: {"embedding": out}, lambda out: [out]])
def test_a_model_with_any_other_output_is_refused_with_what_to_return(wrap):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = perceptron()

        def forward(self, inputs: torch.Tensor) -> Any:
            return wrap(self.inner(inputs))

    with pytest.raises(ConfigurationError, match=r"The model returned (tuple|dict|list).*\(B, D\) tensor"):
        tune(Odd(), vectors())


def test_a_model_of_this_package_gets_images_of_its_own_size():
    model = build_model(ModelConfig(model="small", input_size=16, embedding_dim=8))
    before = weights(model)
    assert changed(before, tune(model, pictures(), preprocess_fn=load_uri_to_image_blob, epochs=1))


# --- documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docs", "options"),
    [
        (vectors(), {}),
        (vectors(), {"loss": "multi_similarity"}),
        (sessions(), {}),
        (sessions(), {"loss": "contrastive"}),
        (DocumentArray(Document(blob=doc.blob) for doc in pictures()), {}),
        (pictures(), {"kind": "unlabeled"}),
        (vectors(), {"val_split": 0.5}),
        (sessions(), {"val_split": 0.25}),
        (DocumentArray(Document(blob=doc.blob) for doc in pictures()), {"val_split": 0.25}),
    ],
    ids=[
        "class",
        "class, mined",
        "session",
        "session, pairs",
        "unlabeled",
        "labels ignored",
        "class, split",
        "session, split",
        "unlabeled, split",
    ],
)
def test_every_kind_of_documents_is_trained_on(docs, options):
    model = Convolutions() if docs[0].blob.ndim == 3 else perceptron()
    before = weights(model)
    assert changed(before, tune(model, docs, **options))


@pytest.mark.parametrize("kind", ["ClassDataset", "SessionDataset", "InstanceDataset"])
def test_a_dataset_is_accepted_as_it_is(kind):
    model, data = {
        "ClassDataset": (perceptron(), ClassDataset(vectors())),
        "SessionDataset": (perceptron(), SessionDataset(sessions())),
        "InstanceDataset": (Convolutions(), InstanceDataset(pictures())),
    }[kind]
    before = weights(model)
    assert changed(before, tune(model, data))


def test_the_preprocess_fn_of_a_dataset_is_used():
    seen: Counter[str] = Counter()

    def preprocess(doc: Document) -> np.ndarray:
        seen[doc.id] += 1
        return doc.blob[:4]

    tune(perceptron(4), ClassDataset(vectors(), preprocess_fn=preprocess))
    assert len(seen) == 24


def test_documents_on_disk_are_the_same_as_those_in_memory(tmp_path):
    with DocumentArrayMemmap(tmp_path / "documents.sqlite") as on_disk:
        on_disk.extend(vectors())
        first = tune(perceptron(), on_disk)
    second = tune(perceptron(), vectors())
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in second.state_dict().items())


@dataclass
class Plain:
    """A document of another library, with our fields."""

    id: str
    blob: Any = None
    tags: dict = field(default_factory=dict)
    uri: str | None = None
    buffer: bytes | None = None
    text: str | None = None
    matches: list | None = None
    embedding: Any = None


class Foreign(BaseDoc):
    """A document schema of another executor, with our fields."""

    uri: str | None = None
    blob: NdArray | None = None
    buffer: bytes | None = None
    text: str | None = None
    tags: dict = {}
    matches: list = []
    embedding: NdArray | None = None


@pytest.mark.parametrize("kind", [Plain, Foreign])
def test_documents_of_another_class_with_our_fields_are_trained_on_and_embedded(kind):
    docs = [kind(id=doc.id, blob=doc.blob, tags=doc.tags) for doc in vectors()]
    first, second = tune(perceptron(), docs), tune(perceptron(), vectors())
    assert all(torch.equal(first.state_dict()[name], tensor) for name, tensor in second.state_dict().items())
    embed(docs, first, device="cpu")
    assert docs[0].embedding.shape == (8,)


def test_preprocess_fn_is_called_anew_for_every_batch():
    def calls(epochs: int) -> int:
        seen: list[str] = []

        def preprocess(doc: Document) -> np.ndarray:
            seen.append(doc.id)
            return doc.blob

        tune(perceptron(), vectors(24), preprocess_fn=preprocess, epochs=epochs)
        return len(seen)

    assert calls(3) - calls(1) == 2 * 24


def test_text_is_trained_on_with_a_collate_fn():
    docs = DocumentArray(
        Document(text="ab"[number % 2] * (1 + number), tags={"finetuner_label": "ab"[number % 2]})
        for number in range(8)
    )

    class Letters(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(256, 8)

        def forward(self, letters: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.table(letters["codes"], letters["offsets"])

    def collate(texts: list[str]) -> dict[str, torch.Tensor]:
        codes = [torch.tensor(list(text.encode())) for text in texts]
        lengths = torch.tensor([0, *map(len, codes)])
        return {"codes": torch.cat(codes), "offsets": lengths.cumsum(0)[:-1]}

    model = Letters()
    before = weights(model)
    assert changed(before, tune(model, docs, collate_fn=collate))
    embed(docs, model, collate_fn=collate, device="cpu")
    assert docs[0].embedding.shape == (8,)


def test_text_without_a_collate_fn_is_refused_with_what_to_pass():
    docs = DocumentArray(Document(text="x", tags={"finetuner_label": number % 2}) for number in range(8))
    with pytest.raises(BadDocument, match=r"is str, not an array; pass a preprocess_fn.*or a collate_fn"):
        tune(perceptron(), docs)


def test_a_uri_without_a_preprocess_fn_is_refused_with_how_to_load_it():
    docs = DocumentArray(Document(uri=f"{number}.png", tags={"finetuner_label": number % 2}) for number in range(8))
    with pytest.raises(BadDocument, match="preprocess_fn=load_uri_to_image_blob"):
        tune(Convolutions(), docs)


# --- evaluation ---------------------------------------------------------------------------------------------------


def test_what_is_told_of_the_eval_documents_is_what_the_returned_model_scores(capsys):
    docs = vectors(40)
    held = EvalSet(ClassDataset(docs[24:]), np.arange(16), device=torch.device("cpu"))
    before = held.score(perceptron()).mean()["mean_average_precision_at_r"]
    model = tune(perceptron(), docs[:24], docs[24:], epochs=4, progress=True)
    after = held.score(model).mean()["mean_average_precision_at_r"]
    assert f"{before:.3f} before, {after:.3f} after" in capsys.readouterr().err


def test_the_two_views_by_which_unlabeled_documents_are_measured_differ():
    dataset = InstanceDataset(DocumentArray(Document(blob=coloured(0, number)) for number in range(12)))
    scores = EvalSet(dataset, np.arange(12), device=torch.device("cpu")).score(Convolutions())
    assert scores.mean()["recall_at_1"] < 1.0


def test_eval_documents_of_which_none_finds_another_are_refused_before_training():
    model = perceptron()
    before = weights(model)
    with pytest.raises(NotTrainable, match="None of the 4 eval documents can be a query"):
        tune(model, vectors(), vectors(CLASSES))
    assert not changed(before, model)


def test_a_split_that_holds_out_nothing_is_refused():
    with pytest.raises(NotTrainable, match=r"val_split=0\.1 holds out none of the 8 documents"):
        tune(perceptron(), vectors(8), val_split=0.1)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epocs": 3}, r"fit has no parameter 'epocs'; it accepts: .*epochs"),
        ({"epochs": 0}, "'epochs'"),
        ({"loss": "softmax"}, "'loss'"),
        ({"loss": "triplet", "loss_options": {"marign": 1}}, "'marign'"),
        ({"promote": "never"}, "'promote'"),
        ({"base": "promoted"}, "'base'"),
        ({"embedding_dim": 4}, "'embedding_dim'"),
    ],
)
def test_an_option_that_fit_does_not_have_is_refused_by_name(options, message):
    model = perceptron()
    before = weights(model)
    with pytest.raises(InvalidParameter, match=message):
        tune(model, vectors(), **options)
    assert not changed(before, model)


def test_freeze_on_a_module_that_is_not_ours_is_refused_with_what_to_do():
    with pytest.raises(ConfigurationError, match="requires_grad"):
        tune(perceptron(), vectors(), freeze=True)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigurationError, match="device='nonsense'"):
        tune(perceptron(), vectors(), device="nonsense")


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        ([], "no documents"),
        (vectors(1), "All 1 documents have the label 0"),
        (vectors(CLASSES), "Each of the 4 labels has only 1 document"),
        ([*vectors(4), Document(id="odd", blob=np.ones(6))], "a mixture: 4 labelled .*1 with neither.*'odd'"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_starts(docs, message):
    model = perceptron()
    before = weights(model)
    with pytest.raises(NotTrainable, match=message):
        tune(model, docs)
    assert not changed(before, model)


def test_a_document_without_the_label_that_its_kind_needs_is_a_key_error():
    with pytest.raises(KeyError, match=r"'odd'.*finetuner_label"):
        tune(perceptron(), [*vectors(4), Document(id="odd", blob=np.ones(6))], kind="class")


# --- the progress bar ---------------------------------------------------------------------------------------------


def test_the_progress_bar_shows_epoch_loss_speed_and_time_left(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    tune(perceptron(), vectors(), epochs=3, progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"epoch 3/3 .*\b9/9\b.*loss \d+\.\d{4}  \d+ images/s  0:00 left", shown)


def test_without_progress_nothing_is_printed(capsys):
    tune(perceptron(), vectors(), vectors(8, 50), progress=False)
    assert capsys.readouterr() == ("", "")


def test_what_a_sampler_adapted_to_is_said(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    tune(perceptron(), vectors(), batch_size=64, progress=True)
    assert capsys.readouterr().err.count("A batch wants 32 labels and there are 4") == 1


# --- embed --------------------------------------------------------------------------------------------------------


def test_embed_fills_unit_embeddings_in_place():
    docs = vectors(10)
    assert embed(docs, perceptron(), device="cpu", batch_size=4) is None
    found = np.stack([doc.embedding for doc in docs])
    assert found.dtype == np.float32
    assert found.shape == (10, 8)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-6)


def test_an_embedding_does_not_depend_on_its_batch():
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 8)).train()
    together, alone = vectors(10), vectors(10)
    embed(together, model, device="cpu", batch_size=10)
    embed(alone, model, device="cpu", batch_size=1)
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first.embedding, second.embedding, atol=1e-6)


def test_a_model_can_ask_for_embeddings_as_they_are():
    model = perceptron()
    model.normalise = False
    docs = vectors(4)
    embed(docs, model, device="cpu")
    with torch.no_grad():
        raw = model(torch.tensor(np.stack([doc.blob for doc in docs])).float()).numpy()
    np.testing.assert_allclose(np.stack([doc.embedding for doc in docs]), raw, rtol=1e-5)


def test_embed_takes_the_preprocess_fn_of_fit(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(coloured(0)))
    docs = DocumentArray([Document(uri=str(tmp_path / "a.png"))])
    embed(docs, Convolutions(), load_uri_to_image_blob, device="cpu")
    assert docs[0].embedding.shape == (8,)
    assert docs[0].blob is None


def test_a_document_that_cannot_be_embedded_is_named():
    docs = DocumentArray([*vectors(2), Document(id="empty")])
    with pytest.raises(BadDocument, match="'empty' has no content"):
        embed(docs, perceptron(), device="cpu")


def test_nothing_to_embed_is_no_error():
    embed(DocumentArray(), perceptron())


def test_documents_on_disk_cannot_be_filled_in_place_and_embed_says_so(tmp_path: Path):
    with DocumentArrayMemmap(tmp_path / "documents.sqlite") as on_disk:
        on_disk.extend(vectors(3))
        with pytest.raises(BadRequest, match="cannot be filled in place"):
            embed(on_disk, perceptron(), device="cpu")
        part = on_disk[:2]
        embed(part, perceptron(), device="cpu")
        assert part[1].embedding.shape == (8,)
