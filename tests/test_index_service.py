"""A promotion without a new index, through a real service: the plan, mapped, shortened and encoded vectors."""

import base64

import numpy as np
import pytest

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import RunStatus
from serving import PROTOCOLS, Service

pytestmark = pytest.mark.flow
WAYS = ["nothing", "map queries", "map index", "embed anew"]
DIM = 128  # of the small model
OTHER = 48


def inline(count: int) -> DocumentArray:
    """Documents that every protocol carries."""
    return DocumentArray(
        Document(
            id=f"u{number}",
            uri="data:image/png;base64," + base64.b64encode(encoded(coloured(number % 4, number))).decode(),
        )
        for number in range(count)
    )


@pytest.fixture(scope="module")
def tuned(service: Service) -> RunStatus:
    """A run with a proof against `base`; it is not promoted."""
    service.post("/fit", images(60), returns=RunStatus, run="indexed", total=60, promote="never")
    status = service.wait("indexed")
    assert status.state == "succeeded", status.error
    return status


@pytest.fixture(scope="module")
def narrower(service: Service, tuned: RunStatus) -> RunStatus:
    """A run whose embeddings are of another size."""
    options = {"promote": "never", "embedding_dim": OTHER, "kind": "class"}
    service.post("/fit", images(60), returns=RunStatus, run="narrower", total=60, **options)
    status = service.wait("narrower")
    assert status.state == "succeeded", status.error
    return status


def embed(service: Service, protocol: str = "grpc", **parameters: object) -> DocumentArray:
    return service.post("/embed", inline(6), protocol=protocol, returns=Document, **parameters)


def test_the_status_has_the_plan_with_four_figures_and_an_advice(service: Service, tuned: RunStatus) -> None:
    plan = tuned.index_plan
    assert set(plan) == {"from", "advice", *WAYS}
    assert plan["from"] == "base"
    assert plan["advice"] in WAYS
    for way in WAYS:
        mean, low, high = plan[way]
        assert 0 <= low <= mean <= high <= 1
    assert plan["embed anew"][0] == pytest.approx(tuned.metrics["tuned/mean_average_precision_at_r"])
    assert "Advice: " in tuned.verdict
    (over_http,) = service.http("/status", run="indexed").json()["data"]
    assert over_http["index_plan"] == plan


def test_vectors_of_another_size_make_doing_nothing_impossible_and_are_mapped_all_the_same(
    service: Service, narrower: RunStatus
) -> None:
    assert narrower.index_plan["nothing"] == []
    assert "There is none if nothing is done, as the sizes differ." in narrower.verdict
    there = embed(service, model="base", space="narrower")
    assert all(doc.embedding.shape == (OTHER,) for doc in there)
    back = embed(service, model="narrower", space="base")
    assert all(doc.embedding.shape == (DIM,) for doc in back)


def test_a_run_without_a_proof_has_no_plan_but_a_map(service: Service) -> None:
    service.post("/fit", images(30), returns=RunStatus, run="unproven", total=30, promote="never")
    status = service.wait("unproven")
    assert status.state == "succeeded", status.error
    assert status.index_plan == {}
    assert embed(service, model="unproven", space="base")[0].tags["finetuner_mapped_from"] == status.space


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_mapped_vectors_say_which_space_they_are_in_and_which_they_came_from(
    service: Service, tuned: RunStatus, protocol: str
) -> None:
    own = {doc.tags["finetuner_space"] for doc in embed(service, protocol, model="base")}
    assert len(own) == 1
    for doc in embed(service, protocol, model="indexed", space="base"):
        assert {doc.tags["finetuner_space"]} == own
        assert doc.tags["finetuner_mapped_from"] == tuned.space
        assert doc.tags["finetuner_model"] == "indexed"
        assert np.linalg.norm(doc.embedding) == pytest.approx(1, abs=1e-5)
    for doc in embed(service, protocol, model="base", space="indexed"):
        assert doc.tags["finetuner_space"] == tuned.space
        assert {doc.tags["finetuner_mapped_from"]} == own


def test_the_space_of_the_version_itself_needs_no_map(service: Service, tuned: RunStatus) -> None:
    plain, same = embed(service, model="indexed"), embed(service, model="indexed", space="indexed")
    for one, other in zip(plain, same, strict=True):
        np.testing.assert_array_equal(one.embedding, other.embedding)
        assert "finetuner_mapped_from" not in other.tags


def test_a_document_that_was_mapped_before_does_not_say_so_any_more(service: Service, tuned: RunStatus) -> None:
    mapped = embed(service, model="indexed", space="base")
    again = service.post("/embed", mapped, returns=Document, model="indexed")
    assert all("finetuner_mapped_from" not in doc.tags for doc in again)
    assert {doc.tags["finetuner_space"] for doc in again} == {tuned.space}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("parameters", "suffix", "shape", "kind"),
    [
        ({"dimensions": 64}, "/64", 64, np.floating),
        ({"encoding": "int8"}, "/int8", DIM, np.int8),
        ({"encoding": "binary"}, "/binary", DIM // 8, np.uint8),
        ({"dimensions": 20, "encoding": "int8"}, "/20/int8", 20, np.int8),
        ({"dimensions": 20, "encoding": "binary"}, "/20/binary", 3, np.uint8),
    ],
)
def test_small_vectors_have_their_size_their_type_and_their_space(
    service: Service,
    tuned: RunStatus,
    protocol: str,
    parameters: dict[str, object],
    suffix: str,
    shape: int,
    kind: type,
) -> None:
    for version, space in (("indexed", tuned.space), ("base", embed(service, model="base")[0].tags["finetuner_space"])):
        for doc in embed(service, protocol, model=version, **parameters):
            assert doc.tags["finetuner_space"] == space + suffix
            assert doc.embedding.shape == (shape,)
            if protocol == "grpc":
                assert np.issubdtype(doc.embedding.dtype, kind)
            elif kind is not np.floating:  # JSON has no types: whole numbers in range
                np.testing.assert_array_equal(doc.embedding, doc.embedding.astype(kind))


def test_small_vectors_are_like_the_plain_ones(service: Service, tuned: RunStatus) -> None:
    for version in ("indexed", "base"):
        plain = np.stack([doc.embedding for doc in embed(service, model=version)])
        whole = np.stack([doc.embedding for doc in embed(service, model=version, encoding="int8")]).astype(float)
        assert cosines(plain, whole).min() > 0.999
        short = np.stack([doc.embedding for doc in embed(service, model=version, dimensions=120)])
        np.testing.assert_allclose(short @ short.T, plain @ plain.T, atol=0.02)
        signs = np.stack([doc.embedding for doc in embed(service, model=version, dimensions=64, encoding="binary")])
        floats = np.stack([doc.embedding for doc in embed(service, model=version, dimensions=64)])
        np.testing.assert_array_equal(np.unpackbits(signs, axis=1), floats > 0)  # the first value in the highest bit


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_vectors_that_are_mapped_and_small_have_the_form_of_the_space_they_are_in(
    service: Service, tuned: RunStatus
) -> None:
    mapped = embed(service, model="base", space="indexed", dimensions=64, encoding="int8")
    assert {doc.tags["finetuner_space"] for doc in mapped} == {f"{tuned.space}/64/int8"}
    assert {doc.embedding.dtype for doc in mapped} == {np.dtype(np.int8)}


def test_matches_are_converted_too_and_errors_stay_with_their_document(service: Service, tuned: RunStatus) -> None:
    good, bad = inline(2)
    bad.uri = "data:image/png;base64,AAAA"
    good.matches = inline(1)
    docs = service.post(
        "/embed", DocumentArray([good, bad]), returns=Document, model="indexed", dimensions=8, matches=True
    )
    assert docs[0].embedding.shape == docs[0].matches[0].embedding.shape == (8,)
    assert docs[1].embedding is None
    assert "finetuner_error" in docs[1].tags
    assert "finetuner_space" not in docs[1].tags


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"model": "narrower", "space": "indexed"}, "There is no map from the space of 'narrower' to that of "),
        ({"model": "base", "space": "nobody"}, "There is no model 'nobody'; there are: base, "),
        ({"dimensions": 0}, "Parameter 'dimensions' of /embed is 0"),
        ({"model": "indexed", "dimensions": 129}, "is 129, but the embeddings have 128 values"),
        ({"encoding": "int4"}, "'float', 'int8' or 'binary'"),
        ({"dimensions": 2.5}, "must be a whole number"),
    ],
)
def test_what_there_is_not_is_refused_with_what_there_is(
    service: Service, narrower: RunStatus, parameters: dict[str, object], words: str
) -> None:
    answer = service.http("/embed", [{"uri": inline(1)[0].uri}], **parameters)
    assert not answer.ok
    assert words in answer.json()["detail"]


def test_the_report_lists_the_ways_and_the_small_vectors(service: Service, tuned: RunStatus) -> None:
    (page,) = service.post("/report", returns=Document, run="indexed")
    assert "An index of the vectors of base" in page.text
    assert "binary, rescored" in page.text
    for way in WAYS:
        assert way in page.text
