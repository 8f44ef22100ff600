"""Promotion by proof: which models are served and which not, how to go back, and what the report says."""

from html.parser import HTMLParser

import numpy as np
import pytest
from jina.excepts import BadServer

from conftest import images
from executor import Document, DocumentArray
from executor.documents import Evaluation, RunStatus
from executor.evaluation.metrics import METRICS
from serving import DOORS, Service

pytestmark = pytest.mark.flow


def patterns(count: int, seed: int, prefix: str, *, shuffled: bool = False) -> DocumentArray:
    """Images of stripes in 4 directions, in random colours: an untrained network confuses them, a tuned one less."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    y, x = np.mgrid[:16, :16]
    waves = [x, y, x + y, x - y]
    docs = DocumentArray()
    for number, label in enumerate(labels):
        stripes = np.sin(waves[label] * 1.6 + random.uniform(0, 6))[..., None] * random.uniform(30, 90, 3)
        image = np.clip(stripes + random.uniform(60, 190, 3) + random.normal(0, 8, (16, 16, 3)), 0, 255)
        docs.append(Document(id=f"{prefix}{number}", blob=image.astype(np.uint8)))
    given = random.permutation(labels) if shuffled else labels
    for doc, label in zip(docs, given, strict=True):
        doc.tags = {"finetuner_label": int(label)}
    return docs


def train(service: Service, run: str, eval_docs: DocumentArray, docs: DocumentArray, **options: object) -> RunStatus:
    """Send train and eval documents and wait for the end; the status shows the version that is served then."""
    options = {"epochs": 4, "batch_size": 24, **options}
    service.post("/fit", eval_docs, returns=RunStatus, run=run, split="eval", **options)
    service.post("/fit", docs, returns=RunStatus, run=run, **{"total": len(docs), **options})
    status = service.wait(run)
    assert status.state == "succeeded", status.error
    return status


# Each run follows the one before, so that the version served before it is known.


@pytest.fixture(scope="module")
def proven(service: Service) -> RunStatus:
    """A run on true labels."""
    return train(service, "true", patterns(60, 1, "e"), patterns(160, 2, "t"))


@pytest.fixture(scope="module")
def shuffled(service: Service, proven: RunStatus) -> RunStatus:
    """A run on labels that mean nothing."""
    eval_docs, docs = patterns(60, 1, "e", shuffled=True), patterns(160, 2, "t", shuffled=True)
    return train(service, "shuffled", eval_docs, docs, epochs=2)


@pytest.fixture(scope="module")
def always(service: Service, shuffled: RunStatus) -> RunStatus:
    """A run that learns next to nothing, of a few of the documents that were announced; it is promoted all the same."""
    options = {"epochs": 3, "learning_rate": 1e-9, "promote": "always", "total": 1000, "start": True}
    return train(service, "always", patterns(12, 1, "e"), patterns(12, 2, "t"), **options)


def gain(status: RunStatus) -> float:
    """How much better the model after is than the one before."""
    name = "mean_average_precision_at_r"
    return status.metrics[f"tuned/{name}"] - status.metrics[f"base/{name}"]


def test_a_run_on_true_labels_is_promoted_with_its_proof(proven: RunStatus) -> None:
    assert gain(proven) > 0
    assert (proven.promoted, proven.model) == (True, "true")
    assert "95 % interval" in proven.verdict
    last = "It has the weights of the last epoch: the documents are too few to choose an epoch by."
    assert f"which is better. {last}" in proven.verdict
    assert "It was promoted." in proven.verdict


def test_a_run_on_shuffled_labels_is_not_promoted(shuffled: RunStatus) -> None:
    assert (shuffled.promoted, shuffled.model) == (False, "true")
    assert "It was not promoted (promote=if_better)" in shuffled.verdict


def test_promote_always_promotes_without_proof(always: RunStatus) -> None:
    assert (always.promoted, always.model) == (True, "always")
    assert "does not prove it better." in always.verdict
    assert "It was promoted." in always.verdict


def test_a_run_that_began_before_all_had_come_says_so(always: RunStatus) -> None:
    assert any("12 of the 1000 documents that `total` announced" in warning for warning in always.warnings)
    assert "12 of the 1000" in always.verdict


def test_a_loss_that_hardly_fell_is_said(always: RunStatus) -> None:
    assert any("The loss hardly fell" in warning for warning in always.warnings)


def test_the_report_of_a_run_is_returned_as_one_html_page(service: Service, proven: RunStatus) -> None:
    (doc,) = service.post("/report", returns=Document, run="true")
    page = doc.text
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert proven.verdict.split(":")[0] in page
    HTMLParser().feed(page)
    assert (service.run_folder("true") / "report.html").read_text() == page
    over_http = service.http("/report", run="true").json()["data"][0]["text"]
    assert over_http == page


def test_the_report_says_what_was_used_and_looks_at_classes_and_labels(service: Service, proven: RunStatus) -> None:
    page = (service.run_folder("true") / "report.html").read_text()
    assert "<code>0.001</code><small>asked for: <code>by default" in page
    assert "<code>proxy_anchor_supcon</code><small>asked for: <code>auto" in page
    for section in ("Measured against", "Sees images of", "Class by class", "Labels that may be wrong"):
        assert section in page


def test_the_report_of_a_run_without_one_says_what_state_it_is_in(service: Service, run: str) -> None:
    service.post("/fit", patterns(8, 3, "w"), returns=RunStatus, run=run, total=99)
    answer = service.http("/report", run=run)
    assert answer.status_code >= 400
    assert answer.json()["detail"].startswith(f"Run '{run}' is receiving and has no report")


# --- /promote --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", DOORS)
def test_promoting_a_run_serves_it_and_promoting_base_rolls_back(
    service: Service, shuffled: RunStatus, protocol: str
) -> None:
    (status,) = service.post("/promote", protocol=protocol, returns=RunStatus, run="shuffled")
    assert (status.run, status.promoted, status.model) == ("shuffled", True, "shuffled")
    assert service.post("/embed", images(1), returns=Document)[0].tags["finetuner_model"] == "shuffled"
    statuses = service.post("/promote", protocol=protocol, returns=RunStatus, run="base")
    assert {status.model for status in statuses} == {"base"}
    assert service.post("/embed", images(1), returns=Document)[0].tags["finetuner_model"] == "base"


@pytest.mark.parametrize("name", ["nobody", "half-way"])
def test_promoting_what_has_no_model_is_refused_by_name_and_changes_nothing(service: Service, name: str) -> None:
    if name == "half-way":
        service.post("/fit", images(2), returns=RunStatus, run=name)
        service.cancel(name)
    service.post("/promote", returns=RunStatus, run="base")
    with pytest.raises(BadServer, match=name):
        service.post("/promote", returns=RunStatus, run=name)
    assert service.post("/embed", images(1), returns=Document)[0].tags["finetuner_model"] == "base"


def test_promote_needs_to_be_told_what(service: Service) -> None:
    response = service.http("/promote")
    assert response.status_code >= 400
    assert response.json()["detail"] == "/promote needs the parameter 'run'; it accepts: run."


# --- /evaluate: more of it in test_evaluate.py ----------------------------------------------------------------------


def evaluate(service: Service, docs: DocumentArray | None = None, **parameters: str) -> Evaluation:
    (evaluation,) = service.post("/evaluate", docs, returns=Evaluation, **parameters)
    return evaluation


def test_the_parameter_run_evaluates_on_the_eval_documents_of_that_run(service: Service, proven: RunStatus) -> None:
    for version, which in (("true", "tuned"), ("base", "base")):
        evaluation = evaluate(service, run="true", model=version)
        assert (evaluation.model, evaluation.queries) == (version, 60)
        of_the_run = {name: proven.metrics[f"{which}/{name}"] for name in METRICS}
        assert evaluation.metrics == pytest.approx(of_the_run, abs=1e-4)


def test_evaluate_measures_the_promoted_version_by_default(service: Service, proven: RunStatus) -> None:
    service.post("/promote", returns=RunStatus, run="true")
    assert evaluate(service, images(6)).model == "true"
    service.post("/promote", returns=RunStatus, run="base")
    assert evaluate(service, images(6)).model == "base"
