"""What a person is told before trusting a model, and what is held out to prove it. In a real Flow.

More of what a run warns of, and of what is promoted, is in `test_proof.py`.
"""

import json
from typing import Any

import numpy as np
import pytest
from docarray import DocList
from jina import Client

from executor import Document, DocumentArray
from executor.documents import Comparison, Evaluation, RunStatus
from serving import DOOR, Service

pytestmark = pytest.mark.flow
MAP = "mean_average_precision_at_r"


def stripes(count: int, *, first: int = 0, tag: str = "finetuner_label", **tags: Any) -> DocumentArray:
    """Images of stripes in 4 directions, in random colours: an untrained network confuses them, a tuned one less."""
    y, x = np.mgrid[:16, :16]
    waves = [x, y, x + y, x - y]
    docs = DocumentArray()
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        wave = np.sin(waves[number % 4] * 1.6 + random.uniform(0, 6))[..., None] * random.uniform(30, 90, 3)
        image = np.clip(wave + random.uniform(60, 190, 3) + random.normal(0, 8, (16, 16, 3)), 0, 255).astype(np.uint8)
        docs.append(Document(id=f"d{number}", blob=image, tags={tag: number % 4, **tags}))
    return docs


def train(service: Service, run: str, docs: DocumentArray, **options: Any) -> RunStatus:
    client = Client(host="127.0.0.1", port=service.ports["grpc"])
    parameters = {"run": run, "total": len(docs), **options}
    client.post("/fit", docs, request_size=len(docs), parameters=parameters, return_type=DocList[RunStatus])
    status = service.wait(run)
    assert status.state == "succeeded", status.error
    return status


@pytest.fixture(scope="module")
def proven(service: Service) -> RunStatus:
    """A run with nothing but defaults, which is served from then on."""
    return train(service, "trust-proven", stripes(160), epochs=8)


def test_with_defaults_some_documents_are_held_out_and_prove_the_model(proven: RunStatus) -> None:
    assert proven.train_documents == 160
    assert proven.metrics[f"tuned/{MAP}"] > proven.metrics[f"base/{MAP}"]
    assert (proven.promoted, proven.model) == (True, "trust-proven")


@pytest.fixture(scope="module")
def short(service: Service, proven: RunStatus) -> RunStatus:
    """A run of one epoch; each eight documents are one group."""
    docs = stripes(160)
    for number, doc in enumerate(docs):
        doc.tags["finetuner_group"] = f"burst {number // 8}"
    return train(service, "trust-short", docs, epochs=1)


def test_a_short_run_does_not_replace_a_better_version_that_is_served(short: RunStatus) -> None:
    assert short.metrics[f"served/{MAP}"] > short.metrics[f"tuned/{MAP}"]
    assert (short.promoted, short.model) == (False, "trust-proven")


def test_documents_of_one_group_are_never_on_both_sides(service: Service, short: RunStatus) -> None:
    held_out = json.loads((service.run_folder(short.run) / "proof.json").read_text())["train"]
    assert held_out
    bursts = {position // 8 for position in held_out}
    assert len(held_out) == 8 * len(bursts)


def test_a_label_under_another_tag_is_said_and_what_was_trained_without_it_is_not_served(
    service: Service, proven: RunStatus
) -> None:
    status = train(service, "trust-misspelt", stripes(48, tag="label"))
    assert (status.kind, status.promoted, status.model) == ("unlabeled", False, "trust-proven")
    assert "48 documents have tags['label'] and no tags['finetuner_label']" in status.warnings[0]
    assert status.warnings[0] in status.verdict
    assert "unproven: Without labels there is nothing to prove it by" in status.verdict


def test_noise_with_random_labels_sent_as_both_is_not_promoted(service: Service, proven: RunStatus) -> None:
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (64, 32, 32, 3), np.uint8), random.integers(0, 4, 64)

    def documents(prefix: str) -> DocumentArray:
        return DocumentArray(
            Document(id=f"{prefix}{number}", blob=image, tags={"finetuner_label": int(label)})
            for number, (image, label) in enumerate(zip(images, labels, strict=True))
        )

    run = "trust-noise"
    service.post("/fit", documents("eval"), returns=RunStatus, run=run, split="eval", epochs=20)
    status = train(service, run, documents("train"))
    assert (status.promoted, status.model, status.metrics) == (False, "trust-proven", {})
    assert "64 of 64 eval documents were left out of the proof: they are copies of train documents" in status.verdict
    assert "'eval0'" in status.warnings[0]


@pytest.fixture(scope="module")
def never(service: Service, proven: RunStatus) -> RunStatus:
    """A run on labels of which some are wrong, with eval documents of which some are copies of train documents.

    It is not promoted however good it is.
    """
    docs = noisy(stripes(160))
    copies = DocumentArray(Document(id=f"c{doc.id}", blob=doc.blob, tags=doc.tags) for doc in docs[:12])
    run = "trust-never"
    service.post("/fit", stripes(40, first=1000), returns=RunStatus, run=run, split="eval", promote="never", epochs=4)
    service.post("/fit", copies, returns=RunStatus, run=run, split="eval")
    return train(service, run, docs)


def noisy(docs: DocumentArray) -> DocumentArray:
    """The documents, a tenth of them with any label."""
    random = np.random.default_rng(5)
    for doc in docs:
        if random.random() < 0.1:
            doc.tags = {"finetuner_label": int(random.integers(4))}
    return docs


def test_eval_documents_that_are_no_copies_are_proof_beside_some_that_are(never: RunStatus) -> None:
    assert never.eval_documents == 52
    assert "on 40 queries" in never.verdict
    assert "12 of 52 eval documents were left out" in never.verdict


def test_noisy_labels_still_give_a_better_model(never: RunStatus) -> None:
    assert never.metrics[f"tuned/{MAP}"] > never.metrics[f"base/{MAP}"]


def test_promote_never_leaves_the_served_version_alone(never: RunStatus) -> None:
    assert (never.promoted, never.model) == (False, "trust-proven")
    assert "It was not promoted (promote=never)." in never.verdict


# --- /evaluate -------------------------------------------------------------------------------------------------------


def test_the_documents_that_a_run_held_out_can_be_evaluated_on(service: Service, proven: RunStatus) -> None:
    (evaluation,) = service.post("/evaluate", returns=Evaluation, run="trust-proven", model="trust-proven")
    assert evaluation.metrics[MAP] == pytest.approx(proven.metrics[f"tuned/{MAP}"], abs=1e-4)


def test_two_versions_are_compared_on_the_documents_that_prove_a_run(service: Service, proven: RunStatus) -> None:
    asked = {"returns": Comparison, "first": "base", "second": "trust-proven"}
    asked |= {"which": "all", "limit": 2, "pictures": True}
    (answer,) = service.post("/compare", protocol=DOOR, **asked)
    assert answer.metrics[f"second/{MAP}"][0] == pytest.approx(proven.metrics[f"tuned/{MAP}"], abs=1e-4)
    assert answer.metrics[f"first/{MAP}"][0] == pytest.approx(proven.metrics[f"base/{MAP}"], abs=1e-4)
    (one,) = service.post("/compare", protocol=DOOR, query=answer.queries[1].number, **asked)
    assert one.queries[0].picture.startswith("data:image/png;base64,")
    assert [len(found) for found in (one.found_first, one.found_second)] == [8, 8]


@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_a_set_in_several_requests_is_scored_as_one(service: Service, proven: RunStatus, protocol: str) -> None:
    docs = stripes(229)
    if protocol == "http":
        docs = DocumentArray(Document(id=doc.id, blob=doc.blob[:4, :4], tags=doc.tags) for doc in docs)
    answers = service.post("/evaluate", docs, protocol=protocol, returns=Evaluation, model="base", total=229)
    assert [answer.queries for answer in answers] == [229] * 3
    assert len({answer.metrics[MAP] for answer in answers}) == 1


def test_documents_that_may_be_a_part_of_a_set_are_not_scored(service: Service, proven: RunStatus) -> None:
    answer = service.http("/evaluate", [{"uri": "data:,", "tags": {"finetuner_label": 1}}] * 100)
    assert answer.status_code >= 400
    assert "parameter 'total'" in answer.json()["detail"]
