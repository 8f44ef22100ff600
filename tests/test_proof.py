"""A better model by proof: what is promoted, what is not, and what the report of it says; in a real Flow."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from executor import Document, DocumentArray
from executor.documents import RunStatus
from serving import Service, served


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One Flow for the tests of this file; a factory for models is importable in its folder."""
    with served(tmp_path_factory.mktemp("proof"), fit_defaults={"epochs": 4, "batch_size": 24}) as running:
        yield running


def patterns(count: int, *, shuffled: bool, seed: int, prefix: str) -> DocumentArray:
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


def train(service: Service, run: str, *, shuffled: bool, **options: object) -> RunStatus:
    """Send train and eval documents and wait for the end."""
    service.post("/fit", patterns(60, shuffled=shuffled, seed=1, prefix="e"), returns=RunStatus, run=run, split="eval")
    docs = patterns(160, shuffled=shuffled, seed=2, prefix="t")
    service.post("/fit", docs, returns=RunStatus, run=run, total=len(docs), **options)
    return service.wait(run)


@pytest.fixture(scope="module")
def proven(service: Service) -> RunStatus:
    """A run on true labels."""
    return train(service, "true", shuffled=False)


def test_a_run_on_true_labels_is_promoted_with_its_proof(service: Service, proven: RunStatus) -> None:
    assert proven.state == "succeeded", proven.error
    name = "mean_average_precision_at_r"
    assert proven.metrics[f"tuned/{name}"] > proven.metrics[f"base/{name}"]
    assert proven.promoted
    assert "95 % interval" in proven.verdict
    assert "which is better" in proven.verdict


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_run_on_shuffled_labels_is_never_promoted(service: Service, proven: RunStatus, seed: int) -> None:
    status = train(service, f"shuffled{seed}", shuffled=True, seed=seed, epochs=2)
    assert status.state == "succeeded", status.error
    assert not status.promoted
    assert status.model == "true"
    assert "It was not promoted (promote=if_better)" in status.verdict


def test_the_report_of_a_run_is_returned_as_one_html_page(service: Service, proven: RunStatus) -> None:
    (doc,) = service.post("/report", returns=Document, run="true")
    page = doc.text
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert proven.verdict.split(":")[0] in page
    HTMLParser().feed(page)
    assert (service.run_folder("true") / "report.html").read_text() == page
    over_http = service.http("/report", run="true").json()["data"][0]["text"]
    assert over_http == page


def test_the_report_of_a_run_without_one_says_what_state_it_is_in(service: Service) -> None:
    service.post("/fit", patterns(8, shuffled=False, seed=3, prefix="w"), returns=RunStatus, run="waiting", total=99)
    answer = service.http("/report", run="waiting")
    assert answer.status_code >= 400
    assert answer.json()["detail"].startswith("Run 'waiting' is receiving and has no report")
    service.http("/cancel", run="waiting")


def test_a_loss_that_is_not_finite_fails_the_run_and_names_the_documents(tmp_path: Path) -> None:
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "poisoned.py").write_text(
        "import numpy as np\n"
        "def content(doc):\n"
        "    return np.full((8, 8, 3), np.nan if doc.id == 'poison' else 0.5, np.float32).transpose(2, 0, 1)\n"
    )
    docs = DocumentArray(
        Document(id="poison" if number == 5 else f"d{number}", text="x", tags={"finetuner_label": number % 2})
        for number in range(12)
    )
    with served(tmp_path, preprocess_fn="poisoned:content") as service:
        service.post("/fit", docs, returns=RunStatus, run="nan", total=12, batch_size=6)
        status = service.wait("nan")
        assert status.state == "failed"
        assert "The loss became nan at step" in status.error
        assert "poison" in status.error
        assert service.status("nan").model == "base"


def test_noisy_labels_still_give_a_better_model(service: Service, proven: RunStatus) -> None:
    random = np.random.default_rng(5)
    docs = patterns(160, shuffled=False, seed=6, prefix="n")
    for doc in docs:
        if random.random() < 0.1:
            doc.tags = {"finetuner_label": int(random.integers(4))}
    held = patterns(60, shuffled=False, seed=7, prefix="m")
    service.post("/fit", held, returns=RunStatus, run="noisy", split="eval")
    service.post("/fit", docs, returns=RunStatus, run="noisy", total=len(docs), promote="never")
    status = service.wait("noisy")
    name = "mean_average_precision_at_r"
    assert status.metrics[f"tuned/{name}"] > status.metrics[f"base/{name}"]
