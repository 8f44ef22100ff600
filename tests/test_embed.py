"""`/embed`: the same documents back, with embeddings of one version."""

import asyncio
import base64
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from docarray import DocList
from jina import Client

from conftest import coloured, encoded, images
from executor import Document, DocumentArray
from executor.documents import Match, RunStatus
from serving import DOORS, Service

DIM = 128  # of the default model
pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def tuned(service: Service) -> str:
    """A run that has succeeded and is not promoted."""
    service.post("/fit", images(24), returns=RunStatus, run="tuned", total=24, promote="never")
    status = service.wait("tuned")
    assert status.state == "succeeded", status.error
    return "tuned"


@pytest.fixture
def base(service: Service) -> Iterator[str]:
    """`base` is served, before and after."""
    service.post("/promote", returns=RunStatus, run="base")
    yield "base"
    service.post("/promote", returns=RunStatus, run="base")


def embed(service: Service, docs: DocumentArray, **parameters: object) -> DocumentArray:
    return service.post("/embed", docs, returns=Document, **parameters)


def data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def inline(count: int) -> DocumentArray:
    """Documents with `data:` uris, which every protocol carries."""
    return DocumentArray(
        Document(id=f"u{number}", uri=data_uri(coloured(number % 4, number)), tags={"price": number})
        for number in range(count)
    )


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", DOORS)
def test_the_same_documents_come_back_in_order_over_every_protocol(service: Service, base: str, protocol: str) -> None:
    docs = inline(20)
    answer = embed(service, docs, protocol=protocol)
    assert [doc.id for doc in answer] == [doc.id for doc in docs]
    assert [doc.uri for doc in answer] == [doc.uri for doc in docs]
    assert [doc.tags["price"] for doc in answer] == list(range(20))


@pytest.mark.parametrize("protocol", ["grpc", "websocket"])  # over HTTP they are plain numbers
def test_embeddings_are_float32_vectors_of_unit_length(service: Service, base: str, protocol: str) -> None:
    answer = embed(service, inline(5), protocol=protocol)
    assert {(doc.embedding.shape, doc.embedding.dtype) for doc in answer} == {((DIM,), np.dtype("float32"))}
    norms = [np.linalg.norm(doc.embedding) for doc in answer]
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)


@pytest.mark.parametrize("protocol", ["http", "websocket", "door"])
def test_all_protocols_give_the_same_embeddings(service: Service, base: str, protocol: str) -> None:
    expected = embed(service, inline(4))
    for one, other in zip(embed(service, inline(4), protocol=protocol), expected, strict=True):
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)


def test_a_bare_post_is_answered_with_plain_numbers(service: Service, base: str) -> None:
    (doc,) = service.http("/embed", [{"id": "x", "uri": data_uri(coloured(1))}]).json()["data"]
    assert doc["id"] == "x"
    assert np.asarray(doc["embedding"]).shape == (DIM,)
    assert doc["tags"]["finetuner_model"] == "base"


def test_an_array_in_json_is_taken_as_an_image(service: Service, base: str) -> None:
    image = coloured(2, size=8)
    (doc,) = service.http("/embed", [{"id": "x", "blob": image.tolist()}]).json()["data"]
    expected = embed(service, DocumentArray([Document(blob=image)]))[0].embedding
    np.testing.assert_allclose(doc["embedding"], expected, atol=1e-5)


def test_the_tag_names_the_version_that_made_the_embedding(service: Service, base: str) -> None:
    assert {doc.tags["finetuner_model"] for doc in embed(service, inline(3))} == {"base"}


def test_another_tag_names_the_space_which_all_embeddings_of_a_version_share(service: Service, base: str) -> None:
    (space,) = {doc.tags["finetuner_space"] for doc in embed(service, inline(3))}
    assert re.fullmatch("[0-9a-f]{12}", space)
    assert {doc.tags["finetuner_space"] for doc in embed(service, inline(2))} == {space}


def test_an_earlier_embedding_is_replaced(service: Service, base: str) -> None:
    doc = Document(blob=coloured(0), embedding=np.zeros(3, np.float32), tags={"finetuner_model": "old"})
    (answer,) = embed(service, DocumentArray([doc]))
    assert answer.embedding.shape == (DIM,)
    assert answer.tags["finetuner_model"] == "base"


def test_no_documents_are_answered_with_none(service: Service) -> None:
    response = service.http("/embed")
    assert (response.status_code, response.json()["data"]) == (200, [])


# --- bad documents ---------------------------------------------------------------------------------------------------


# A progressive JPEG of 64 megapixels with a thousand scans without data
TOO_COSTLY = (
    b"\xff\xd8\xff\xc2"
    + struct.pack(">HBHHB", 11, 8, 4000, 16_000, 1)
    + b"\1\x11\0"
    + b"\xff\xda\0\x08\1\1\0\0\0\0" * 1000
)
BAD = {
    "missing": ({"uri": "nowhere.png"}, "nowhere.png"),
    "outside": ({"uri": "/etc/hostname"}, "allowed_roots"),
    "remote": ({"uri": "http://127.0.0.1/x.png"}, "allow_remote_uris"),
    "no-image": ({"buffer": b"not an image"}, "unknown format"),
    "truncated": ({"buffer": encoded(coloured(0, size=64))[:-3000]}, "truncated"),
    "empty": ({}, "uri"),
    "percent": ({"uri": "data:," + "%" * 1_000_000}, "unknown format"),
    "too-costly": ({"buffer": TOO_COSTLY}, "too many scans for 16000×4000 pixels"),
    "shape": ({"blob": np.zeros((5, 5, 7), np.uint8)}, "shape"),
}


@pytest.fixture(scope="module")
def among_bad_ones(service: Service) -> DocumentArray:
    """What comes back of good documents with every sort of bad one between them."""
    docs = DocumentArray()
    for number, (name, (fields, _)) in enumerate(BAD.items()):
        docs.append(Document(id=f"good-{number}", blob=coloured(number, number)))
        docs.append(Document(id=name, **fields))
    return embed(service, docs)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_document_comes_back_without_embedding_and_with_the_error(
    among_bad_ones: DocumentArray, name: str
) -> None:
    (doc,) = (doc for doc in among_bad_ones if doc.id == name)
    assert doc.embedding is None
    assert BAD[name][1] in doc.tags["finetuner_error"]
    assert "finetuner_model" not in doc.tags


def test_the_neighbours_of_bad_documents_are_embedded_as_if_alone(
    service: Service, among_bad_ones: DocumentArray
) -> None:
    good = [doc for doc in among_bad_ones if doc.id.startswith("good-")]
    assert len(good) == len(BAD)
    assert all("finetuner_error" not in doc.tags for doc in good)
    alone = embed(service, DocumentArray([Document(blob=coloured(3, 3))]), model="base")[0]
    np.testing.assert_allclose(good[3].embedding, alone.embedding, atol=1e-5)


def test_a_bad_document_over_http_does_not_fail_the_request(service: Service) -> None:
    response = service.http("/embed", [{"id": "bad", "uri": "nowhere.png"}, {"id": "ok", "uri": data_uri(coloured(0))}])
    bad, good = response.json()["data"]
    assert (bad["id"], bad["embedding"], "nowhere.png" in bad["tags"]["finetuner_error"]) == ("bad", None, True)
    assert (good["id"], len(good["embedding"])) == ("ok", DIM)


# --- matches ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def session() -> DocumentArray:
    matches = [Match(id=f"m{number}", blob=coloured(number, number)) for number in range(3)]
    matches.append(Match(id="bad", uri="nowhere.png"))
    return DocumentArray([Document(id="root", blob=coloured(0), matches=matches)])


def test_matches_are_left_alone_by_default(service: Service, session: DocumentArray) -> None:
    (root,) = embed(service, session)
    assert root.embedding is not None
    assert [match.embedding for match in root.matches] == [None] * 4


def test_matches_are_embedded_when_asked_for(service: Service, session: DocumentArray) -> None:
    (root,) = embed(service, session, matches=True, model="base")
    assert [match.id for match in root.matches] == ["m0", "m1", "m2", "bad"]
    assert [match.embedding is None for match in root.matches] == [False, False, False, True]
    assert [match.tags.get("finetuner_model") for match in root.matches] == ["base", "base", "base", None]
    assert "nowhere.png" in root.matches[3].tags["finetuner_error"]


# --- versions --------------------------------------------------------------------------------------------------------


def test_the_parameter_model_chooses_the_version(service: Service, base: str, tuned: str) -> None:
    docs = inline(3)
    from_base, from_run = embed(service, docs, model="base"), embed(service, docs, model=tuned)
    assert {doc.tags["finetuner_model"] for doc in from_run} == {tuned}
    (space,) = {doc.tags["finetuner_space"] for doc in from_run}
    assert space == service.status(tuned).space
    assert space not in {doc.tags["finetuner_space"] for doc in embed(service, inline(1), model="base")}
    assert not np.allclose(from_base[0].embedding, from_run[0].embedding, atol=1e-3)


def test_the_promoted_version_is_the_default(service: Service, base: str, tuned: str) -> None:
    service.post("/promote", returns=RunStatus, run=tuned)
    default, named = embed(service, inline(3)), embed(service, inline(3), model=tuned)
    assert {doc.tags["finetuner_model"] for doc in default} == {tuned}
    np.testing.assert_allclose(default[0].embedding, named[0].embedding, atol=1e-5)


def test_an_unknown_version_is_refused_by_name(service: Service) -> None:
    response = service.http("/embed", [{"uri": data_uri(coloured(0))}], model="nobody")
    assert response.status_code >= 400
    assert "'nobody'" in response.json()["detail"]


def test_an_unknown_parameter_is_refused_by_name(service: Service) -> None:
    response = service.http("/embed", [{"uri": data_uri(coloured(0))}], version="base")
    assert response.status_code >= 400
    assert (
        response.json()["detail"]
        == "/embed has no parameter 'version'; it accepts: model, matches, space, dimensions, encoding."
    )


def test_one_response_never_mixes_versions_while_promotions_come_and_go(
    service: Service, base: str, tuned: str
) -> None:
    data = [{"id": str(number), "uri": data_uri(coloured(number % 4, number))} for number in range(60)]
    address = f"http://127.0.0.1:{service.ports['http']}"

    def request() -> list[dict]:
        answer = requests.post(f"{address}/embed", json={"data": data}, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    expected = {
        version: [doc.embedding for doc in embed(service, DocumentArray(map(_as_document, data)), model=version)]
        for version in ("base", tuned)
    }
    with ThreadPoolExecutor(4) as pool:
        responses = [pool.submit(request) for _ in range(24)]
        turn = 0
        while not all(response.done() for response in responses):
            service.http("/promote", run=(tuned, "base")[turn % 2])
            turn += 1
    served = [response.result() for response in responses]
    versions = [{doc["tags"]["finetuner_model"] for doc in response} for response in served]
    assert {len(version) for version in versions} == {1}
    assert set().union(*versions) == {"base", tuned}
    for response, (version,) in zip(served, versions, strict=True):
        np.testing.assert_allclose([doc["embedding"] for doc in response], expected[version], atol=1e-5)


def _as_document(fields: dict[str, str]) -> Document:
    return Document(**fields)


# --- the embedding depends on the pixels alone -----------------------------------------------------------------------


def test_an_embedding_does_not_depend_on_its_batch_mates(service: Service, base: str) -> None:
    docs = DocumentArray(Document(id=str(number), blob=coloured(number % 4, number)) for number in range(70))
    together = embed(service, docs)
    for number in (0, 33, 69):
        (alone,) = embed(service, docs[number : number + 1])
        np.testing.assert_allclose(alone.embedding, together[number].embedding, atol=1e-5)


def test_concurrent_requests_get_the_embeddings_of_their_own_documents(service: Service, base: str) -> None:
    docs = DocumentArray(Document(id=str(number), blob=coloured(number % 4, number)) for number in range(40))
    expected = {doc.id: doc.embedding for doc in embed(service, docs)}
    client = Client(host="127.0.0.1", port=service.ports["grpc"], protocol="grpc", asyncio=True)

    async def post(part: DocumentArray) -> list[Document]:
        answer = client.post(
            "/embed",
            part,
            request_size=3,
            return_type=DocList[Document],
        )
        answers = [list(response) async for response in answer]  # as they come, so not in the order of the requests
        answers.sort(key=lambda docs: part.id.index(docs[0].id))
        return [doc for docs in answers for doc in docs]

    async def all_at_once() -> list[list[Document]]:
        return await asyncio.gather(*(post(docs[start::8]) for start in range(8)))

    for start, part in enumerate(asyncio.run(all_at_once())):
        assert [doc.id for doc in part] == [doc.id for doc in docs[start::8]]
        for doc in part:
            np.testing.assert_allclose(doc.embedding, expected[doc.id], atol=1e-5)


def test_the_same_pixels_embed_alike_as_uri_buffer_blob_and_float_blob(service: Service, base: str) -> None:
    image = coloured(1, size=32)
    file = service.directory / "same.png"
    file.write_bytes(encoded(image))
    docs = DocumentArray(
        [
            Document(uri="same.png"),
            Document(uri=file.as_uri()),
            Document(uri=data_uri(image)),
            Document(buffer=encoded(image)),
            Document(blob=image),
            Document(blob=image.astype(np.float32) / 255),
        ]
    )
    embeddings = [doc.embedding for doc in embed(service, docs)]
    for embedding in embeddings[1:]:
        np.testing.assert_allclose(embedding, embeddings[0], atol=1e-5)
