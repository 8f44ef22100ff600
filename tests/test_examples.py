"""The examples run as their comments say, in their own processes. The demonstration: test_demo.py."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docarray import DocList
from jina import Client

from executor import Document, DocumentArray
from executor.documents import RunStatus
from flows import served_by
from serving import ROOT, free_ports

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of examples/pipeline/flow.yml, on free ports and with its workspace in a folder of the test."""
    folder = tmp_path_factory.mktemp("pipeline")
    grpc, http = free_ports(2)
    flow = (ROOT / "examples/pipeline/flow.yml").read_text()
    assert "[54321, 8080]" in flow
    flow = flow.replace("[54321, 8080]", f"[{grpc}, {http}]").replace("../..", str(ROOT))
    kept = "    workspace: workspace\n"
    assert kept in flow
    flow = flow.replace(kept, kept + "    uses_with: {trainer_yields: false}\n")  # other tests keep the machine busy
    (folder / "flow.yml").write_text(flow)
    (folder / "indexer.py").symlink_to(ROOT / "examples/pipeline/indexer.py")
    command = [Path(sys.executable).with_name("jina"), "flow", "--uses", "flow.yml"]
    with served_by(command, folder, http, {"PYTHONPATH": str(ROOT)}):
        yield Client(host="127.0.0.1", port=grpc)


def test_the_pipeline_finds_what_it_indexed_by_its_image(search, labelled):
    docs = labelled(12)
    indexed = search.post("/index", docs, return_type=DocumentArray)
    assert [doc.id for doc in indexed] == [doc.id for doc in docs]
    assert all(doc.tags["finetuner_model"] == "base" for doc in indexed)

    queries = DocumentArray(Document(id=f"query-{doc.id}", blob=doc.blob) for doc in docs[:4])
    found = search.post("/search", queries, parameters={"indexer__limit": 3}, return_type=DocumentArray)
    assert [doc.matches[0].id for doc in found] == [doc.id for doc in docs[:4]]
    assert [len(doc.matches) for doc in found] == [3] * 4
    for doc in found:
        similarities = [match.tags["similarity"] for match in doc.matches]
        assert similarities == sorted(similarities, reverse=True)
        assert similarities[0] == pytest.approx(1, abs=1e-4)


def test_the_pipeline_still_embeds_at_the_endpoint_of_its_own(search, labelled):
    (doc,) = search.post("/embed", labelled(1), return_type=DocumentArray)
    assert doc.embedding.shape == (1280,)


def test_the_pipeline_trains_and_then_refuses_to_mix_the_models(search, labelled):
    docs = labelled(24)
    search.post("/index", docs, return_type=DocumentArray)
    parameters = {"run": "tuned", "total": len(docs), "epochs": 1, "batch_size": 8, "promote": "always"}
    (started,) = search.post("/fit", docs, parameters=parameters, return_type=DocList[RunStatus])
    assert started.train_documents == len(docs)
    while not (
        status := search.post("/status", parameters={"run": "tuned"}, return_type=DocList[RunStatus])[0]
    ).ended_at:
        time.sleep(0.2)
    assert (status.state, status.model) == ("succeeded", "tuned")

    (query,) = search.post("/search", docs[:1], return_type=DocumentArray)
    assert not query.matches
    search.post("/index", docs, return_type=DocumentArray)
    (query,) = search.post("/search", docs[:1], return_type=DocumentArray)
    assert query.matches[0].id == docs[0].id


def test_the_pipeline_does_not_sink_with_an_unreadable_image(search, labelled):
    docs = DocumentArray([Document(id="broken", buffer=b"no image"), *labelled(1)])
    broken, good = search.post("/search", docs, return_type=DocumentArray)
    assert "finetuner_error" in broken.tags
    assert not broken.matches
    assert good.embedding is not None
