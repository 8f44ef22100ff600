"""No answer mixes spaces or names the wrong one: under promotions, rollbacks, deletes, and with names used again."""

import asyncio
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import coloured
from executor import Document, DocumentArray
from executor.documents import MAPPED_TAG, MODEL_TAG, SPACE_TAG
from executor.endpoints.service import Service
from executor.endpoints.table import call
from executor.errors import Conflict, InvalidParameter, UnknownModel, WorkspaceError
from executor.evaluation.map_fitting import learn_maps
from executor.models import small_vectors
from executor.models.building import build_model
from executor.models.model import EmbeddingModel, ModelConfig
from executor.models.saving import load_model, save_model, space_of
from executor.models.small_vectors import FILE as SMALL_FILE
from executor.models.small_vectors import learn_small_vectors
from executor.models.space_map import FILE as MAP_FILE
from executor.parameters import EmbedParameters, TrainingOptions, parse_executor_options
from executor.serving.spaces import Conversion, Spaces
from executor.store.run import RunState
from executor.web.embeddings import as_error
from executor.worker.index_learning import LearnedIndex

pytestmark = pytest.mark.compute

SIZE = 16
OPTIONS = {"model": "small", "input_size": SIZE, "standby_seconds": 0, "fast_inference": False}
SEEN = np.stack([coloured(number % 4, number, SIZE) for number in range(60)])


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """What every door serves, without a door; `base` is loaded."""
    running = Service(tmp_path, parse_executor_options(OPTIONS).with_roots())
    running.supervisor.close()  # the runs of these tests are made at once, and nobody shall train them
    running.embedder.version("base")
    yield running
    running.close()


def embed(service: Service, count: int = 3, **parameters: Any) -> list[Document]:
    docs = DocumentArray(Document(blob=coloured(number % 4, 100 + number, SIZE)) for number in range(count))
    return list(asyncio.run(call(service, "/embed", docs, parameters)))


def spaces(docs: list[Document]) -> tuple[str, str | None]:
    """The one space that all have, and the one that all were mapped from."""
    ((space, source),) = {(doc.tags[SPACE_TAG], doc.tags.get(MAPPED_TAG)) for doc in docs}
    return space, source


def embedded(model: EmbeddingModel) -> np.ndarray:
    from executor.loading.batches import collate
    from executor.loading.forward import embed_batches

    return embed_batches(model, [collate(list(SEEN))], next(model.parameters()).device)


def add_run(service: Service, name: str, seed: int, *, served: str = "base", learned: bool = True) -> str:
    """A run that has succeeded, with a model of its own and a map to and from `served`. Return its space."""
    service.store.create(name, TrainingOptions())
    for state in (RunState.QUEUED, RunState.TRAINING, RunState.SUCCEEDED):
        service.store.advance(name, state)
    workspace = service.store.workspace
    model = build_model(ModelConfig(model="small", input_size=SIZE, seed=seed))
    other = workspace.model_folder(served)
    old, new = embedded(load_model(other)), embedded(model)
    forward, backward = learn_maps((old, new), (old, new))
    index = LearnedIndex(
        version=served,
        space=space_of(other),
        forward=forward.map,
        backward=backward.map,
        kinds=("", ""),
        small=learn_small_vectors(new, unit=True),
    )
    save_model(model, workspace.model_folder(name), beside=index.write if learned else None)
    return space_of(workspace.model_folder(name))


def base_space(service: Service) -> str:
    return space_of(service.store.workspace.base)


def test_queries_stay_in_the_space_of_an_index_through_a_promotion_and_back(service: Service) -> None:
    own, base = add_run(service, "a", 1), base_space(service)
    assert spaces(embed(service, space="base")) == (base, None)
    asyncio.run(call(service, "/promote", [], {"run": "a"}))
    assert spaces(embed(service)) == (own, None)
    assert spaces(embed(service, space="base")) == (base, own)
    assert spaces(embed(service, space="a")) == (own, None)
    asyncio.run(call(service, "/promote", [], {"run": "base"}))
    assert spaces(embed(service, space="base")) == (base, None)
    assert spaces(embed(service, space="a")) == (own, base)


def test_the_vectors_are_where_they_say(service: Service) -> None:
    """Nearer to what the other version makes of the same picture than to what it makes of others."""
    add_run(service, "a", 1)
    mapped, there = (
        np.stack([doc.embedding for doc in embed(service, 4, **parameters)])
        for parameters in ({"model": "a", "space": "base"}, {"model": "base"})
    )
    assert (np.argmax(mapped @ there.T, axis=1) == np.arange(4)).all()
    assert np.diag(mapped @ there.T).min() > 0.75


def test_a_name_that_is_used_again_is_another_space(service: Service) -> None:
    first, base = add_run(service, "a", 1), base_space(service)
    assert spaces(embed(service, model="base", space="a")) == (first, base)
    asyncio.run(call(service, "/delete", [], {"run": "a"}))
    with pytest.raises(UnknownModel, match="There is no model 'a'; there are: base"):
        embed(service, model="base", space="a")
    second = add_run(service, "a", 2)
    assert second != first
    assert spaces(embed(service, model="base", space="a")) == (second, base)
    assert spaces(embed(service, model="a", space="base")) == (base, second)
    assert spaces(embed(service, model="a", dimensions=8, encoding="int8")) == (f"{second}/8/int8", None)


def test_a_map_to_a_version_whose_name_another_has_now_is_none(service: Service) -> None:
    add_run(service, "a", 1)
    add_run(service, "b", 2, served="a")
    asyncio.run(call(service, "/delete", [], {"run": "a"}))
    add_run(service, "a", 3)
    with pytest.raises(InvalidParameter, match="There is no map from the space of 'b' to that of 'a'; no map leads"):
        embed(service, model="b", space="a")
    with pytest.raises(
        InvalidParameter, match=r"There is no map from the space of 'a' to that of 'b'; maps lead .* base"
    ):
        embed(service, model="a", space="b")


def test_maps_are_not_chained_and_the_refusal_names_those_that_there_are(service: Service) -> None:
    add_run(service, "a", 1)
    add_run(service, "b", 2, served="a")
    add_run(service, "c", 3)
    with pytest.raises(InvalidParameter, match=r"from the space of 'b' to that of 'base'; maps lead from it to: a\."):
        embed(service, model="b", space="base")
    with pytest.raises(InvalidParameter, match=r"maps lead from it to: a, c\."):
        embed(service, model="base", space="b")


def test_the_same_weights_under_two_names_are_one_space_without_a_map(service: Service) -> None:
    own = add_run(service, "a", 1)
    assert add_run(service, "copy", 1, learned=False) == own
    assert spaces(embed(service, model="a", space="copy")) == (own, None)


@pytest.mark.parametrize("wanted", [{"dimensions": 7}, {"encoding": "binary"}])
def test_what_takes_long_of_a_conversion_is_never_made_on_the_event_loop(
    service: Service, wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix of 1279 dimensions takes seconds, in which a service that makes it there answers nobody."""
    real, made_by = np.linalg.qr, set()

    def made(values: np.ndarray) -> Any:
        made_by.add(threading.current_thread())
        return real(values)

    monkeypatch.setattr(np.linalg, "qr", made)
    monkeypatch.setattr(small_vectors, "KEPT", 0)  # others' dimensions may push it out before it is used
    embed(service, **wanted)
    assert made_by
    assert threading.current_thread() not in made_by


def test_what_was_replaced_while_it_embedded_is_refused_and_left_as_it_was(service: Service) -> None:
    own = add_run(service, "a", 1)
    docs = embed(service, model="a")
    was = [doc.embedding.copy() for doc in docs]
    conversion = Conversion(
        version="a", source="0" * 12, target=own, map=None, small=None, dimensions=None, encoding="float"
    )
    with pytest.raises(Conflict, match="'a' was replaced while it embedded"):
        conversion.apply(docs)
    assert spaces(docs) == (own, None)
    for doc, vector in zip(docs, was, strict=True):
        np.testing.assert_array_equal(doc.embedding, vector)


def test_many_calls_during_promotions_never_mix_or_mislabel(service: Service) -> None:
    """Each answer is checked against what the version that it names makes of the same pictures."""
    own, base = add_run(service, "a", 1), base_space(service)
    names = {"a": own, "base": base}
    plain = {name: np.stack([doc.embedding for doc in embed(service, model=name)]) for name in names}

    async def ask(wanted: str) -> tuple[str, list[Document]]:
        docs = DocumentArray(Document(blob=coloured(place % 4, 100 + place, SIZE)) for place in range(3))
        return wanted, list(await call(service, "/embed", docs, {"space": wanted}))

    async def promote_and_ask() -> list[tuple[str, list[Document]]]:
        under_way, answers = [], []
        for number in range(8):
            await call(service, "/promote", [], {"run": ("a", "base")[number % 2]})
            under_way += [asyncio.create_task(ask(wanted)) for wanted in names]  # the next promotion comes meanwhile
            answers.append(await ask(("a", "base")[number // 2 % 2]))
        return answers + list(await asyncio.gather(*under_way))

    seen = set()
    for wanted, docs in asyncio.run(promote_and_ask()):
        ((made_by, space, source),) = {
            (doc.tags[MODEL_TAG], doc.tags[SPACE_TAG], doc.tags.get(MAPPED_TAG)) for doc in docs
        }
        assert space == names[wanted]
        assert source == (None if made_by == wanted else names[made_by])
        near = (np.stack([doc.embedding for doc in docs]) * plain[wanted]).sum(1)
        assert near.min() > (0.9999 if source is None else 0.75)
        seen.add((made_by, wanted))
    assert len(seen) == 4  # both models answered for both spaces


def test_a_version_of_an_earlier_release_has_no_map_and_small_vectors_all_the_same(service: Service) -> None:
    own = add_run(service, "old", 1, learned=False)
    assert not (service.store.workspace.model_folder("old") / SMALL_FILE).exists()
    assert spaces(embed(service, model="old", dimensions=16, encoding="binary")) == (f"{own}/16/binary", None)
    with pytest.raises(InvalidParameter, match="no map leads from it"):
        embed(service, model="old", space="base")


def test_a_reader_maps_to_the_space_that_its_version_was_measured_against(service: Service) -> None:
    """It has the folder of the served version only, under a name of its own making."""
    own, base = add_run(service, "a", 1), base_space(service)
    version = service.embedder.version("a")

    def folder(name: str) -> Path:
        if name != "a":
            raise UnknownModel(name)
        return service.store.workspace.model_folder(name)

    reader = Spaces(folder, lambda: ["a"], elsewhere=True)
    found = reader.conversion(version, EmbedParameters(space="base"))
    assert (found.source, found.space) == (own, base)
    assert reader.conversion(version, EmbedParameters(dimensions=8)).space == f"{own}/8"
    with pytest.raises(
        InvalidParameter, match="cannot map to the space of 'b'; it has a map to that of 'base'"
    ) as refused:
        reader.conversion(version, EmbedParameters(space="b"))
    assert as_error(refused.value)["param"] == "space"
    with pytest.raises(InvalidParameter, match="ask for the space alone"):
        reader.conversion(version, EmbedParameters(space="base", encoding="int8"))


def test_a_damaged_map_is_named_and_hinders_nothing_else(service: Service) -> None:
    own = add_run(service, "a", 1)
    folder = service.store.workspace.model_folder("a")
    (folder / MAP_FILE).write_bytes(b"nonsense")
    with pytest.raises(WorkspaceError, match=f"{MAP_FILE} is damaged"):
        embed(service, model="a", space="base")
    assert spaces(embed(service, model="a")) == (own, None)


def test_a_base_without_a_folder_yet_is_made_when_its_space_is_asked_for(service: Service) -> None:
    own = add_run(service, "a", 1)
    shutil.rmtree(service.store.workspace.base)
    service.embedder.forget("base")
    space, source = spaces(embed(service, model="a", space="base"))
    assert (space, source) == (base_space(service), own)
