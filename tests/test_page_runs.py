"""The pages of runs: what they show, what they do and say before, and that texts of others stay texts."""

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from conftest import coloured, encoded
from doors import Opened, opened
from executor import Document, DocumentArray
from executor.documents import RunStatus
from executor.endpoints.health import Readiness
from executor.evaluation.metrics import DECIDING
from executor.parameters import FitParameters, TrainingOptions
from executor.report.parts import LabelErrors, Suspect
from executor.report.report import Report
from executor.report.saving import save
from executor.store.run import Progress, RunState
from executor.store.runs import Quarantined, RunStore
from executor.store.spool import DocumentArrayMemmap
from executor.store.workspace import Workspace
from executor.web.ui.actions import CHANGES
from pages import Visitor, page_over

NASTY = "\"><script>alert(1)</script>'{{7*7}}"
URI = f"data:image/png;base64,{base64.b64encode(encoded(coloured(0))).decode()}"
SPACE = "0123456789ab"


def suspect(id: str, part: str = "train") -> Suspect:
    return Suspect(
        image=coloured(1), caption="apple", name=id, suggested="pear", margin=0.5, part=part, id=id, given="apple",
        proposed="pear",
    )  # fmt: skip


def report_of(run: str, **parts: Any) -> Report:
    return Report(
        run=run, kind="class", base="base", created_at=None, started_at=None, ended_at=None, train_documents=3,
        eval_documents=0, held_out=0, skipped=0, problems=[], classes=2, options={}, device="cpu",
        history={"loss": [2.0, 1.0]}, metrics={}, difference=None, outcomes=None, queries=0, queries_skipped=0,
        verdict=NASTY, promoted=False, gallery=[], **parts,
    )  # fmt: skip


def make_run(store: RunStore, name: str, docs: list[Document], *moves: RunState, **changes: Any) -> None:
    """A run that has come to the last of `moves`, without a trainer."""
    store.create(name, TrainingOptions(kind="class"))
    with DocumentArrayMemmap(store.workspace.spool_file(name)) as spool:
        spool.extend(DocumentArray(docs))
    for move in moves:
        more = {"train_rows": len(docs), "eval_rows": 0} if move is RunState.QUEUED else {}
        store.advance(name, move, **more, **(changes if move.ended else {}))


def fill(folder: Path) -> None:
    """A workspace with a run that succeeded, and one that failed."""
    store = RunStore(Workspace(folder / "workspace"))
    docs = [Document(id=id, uri=URI, tags={"finetuner_label": "apple"}) for id in ("a", "b", NASTY)]
    queued, training = RunState.QUEUED, RunState.TRAINING
    make_run(store, "good", docs, queued, training, RunState.SUCCEEDED, verdict=NASTY)
    store.report(
        "good",
        Progress(
            kind="class",
            history={"loss": [2.0, 1.0]},
            metrics={f"served/{DECIDING}": 0.25, f"tuned/{DECIDING}": 0.75},
            warnings=[NASTY],
            space=SPACE,
            index_plan={"from": "base", "advice": "map queries", "map queries": [0.7] * 3, "embed anew": [0.8] * 3},
        ),
    )  # fmt: skip
    spooled = [Quarantined("0", "a", NASTY), Quarantined("2", NASTY, "it is odd")]
    store.quarantine("good", "train", spooled, spooled=True)
    store.quarantine("good", "eval", [Quarantined("digest", "lost", "it has no image")], spooled=False)
    suspects = [suspect("a"), suspect(NASTY), suspect("proof", "eval")]
    errors = LabelErrors(checked=200, accuracy=0.9, extent="all", found=3, suspects=suspects)
    save(report_of("good", label_errors=errors), store.workspace.run_folder("good"))
    make_run(store, "bad", docs[:1], queued, training, RunState.FAILED, error=NASTY)
    store.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Visitor]:
    folder = tmp_path_factory.mktemp("runs")
    fill(folder)
    with page_over(folder) as visitor:
        yield visitor


@pytest.fixture
def own_page(tmp_path) -> Iterator[Visitor]:
    fill(tmp_path)
    with page_over(tmp_path) as visitor:
        yield visitor


def text_of(answer: Any) -> str:
    """What a person reads."""
    main = answer.text.split("<main", 1)[1].split("</main>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", main)).split())


# what is shown ------------------------------------------------------------------------------------------------------


def test_the_runs_are_there_with_what_became_of_them(page):
    text = text_of(page.get("/ui/"))
    assert "Served now Version base the model before any run" in text
    assert "Nothing is trained at the moment." in text
    assert "good succeeded" in text
    assert "0.750 before 0.250" in text
    assert "Your index: map queries." in text
    assert "bad failed" in text


def test_the_page_of_a_run_has_its_figures_its_labels_what_was_left_out_and_its_history(page):
    text = text_of(page.get("/ui/runs/good"))
    for said in (
        "An index of the vectors of base can stay as it is, if each new query is mapped to it",
        "Labels that may be wrong 3 documents of 200",
        "It was sent to measure with",
        "Left out: 3 documents",
        "it has no image (to measure with)",
        "succeeded",
        "the run was created",
    ):
        assert said in text, said


def test_the_page_of_a_run_says_what_was_measured_and_where_it_is_decided(page):
    good, bad = (text_of(page.get(f"/ui/runs/{name}")) for name in ("good", "bad"))
    decided = "On this page, Compare shows what it does better and worse, and Serve it serves it from then on."
    assert "Documents to measure with some of these" in good
    assert "Documents to measure with none" in bad
    assert (decided in good, decided in bad) == (True, False)


@pytest.mark.parametrize(
    "path", ["compare/query?second=good&number=", "compare?second=good&which=worse&from=", "label?at="]
)
@pytest.mark.parametrize("number", ["9" * 5000, "-1", "²"])
def test_a_number_that_is_none_or_absurd_is_refused_in_a_sentence(page, path, number):
    answer = page.get(f"/ui/{path}{number}")
    assert answer.status_code < 500
    assert "It is the fault of the service" not in answer.text


@pytest.mark.parametrize("path", ["/ui/", "/ui/runs/good", "/ui/runs/bad", "/ui/runs/good/left-out", "/ui/start"])
def test_markup_in_texts_of_others_is_shown_as_text(page, path):
    answer = page.get(path)
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert NASTY in text_of(answer) or path == "/ui/start"


def test_the_report_opens_by_itself_and_may_do_nothing(page):
    answer = page.get("/ui/runs/good/report")
    assert "fine-tuning report" in answer.text
    policy = answer.headers["content-security-policy"]
    assert "sandbox" in policy
    assert "script" not in policy
    assert "attachment" in page.get("/ui/runs/good/report?save=1").headers["content-disposition"]


@pytest.mark.parametrize("path", ["", "/report", "/events", "/left-out", "/cancel", "/delete"])
def test_a_run_that_is_not_there_is_a_404_that_names_those_that_are(page, path):
    answer = page.get(f"/ui/runs/nowhere{path}")
    assert answer.status_code == 404
    assert "There is no run 'nowhere'; there are: bad, good" in text_of(answer)


@pytest.mark.parametrize("path", ["/ui/runs/good/nonsense", "/ui/runs/base/delete", "/ui/runs/..%2f..%2fetc"])
def test_what_no_page_is_for_is_a_404_or_refused(page, path):
    assert page.get(path).status_code in (400, 404)


# quarantined documents ----------------------------------------------------------------------------------------------


def test_quarantined_documents_have_their_reason_and_those_that_can_be_read_a_thumbnail(page):
    answer = page.post("/quarantined", json={"parameters": {"run": "good", "limit": 2}}).json()["data"]
    assert [(doc["id"], doc["tags"]["finetuner_error"]) for doc in answer] == [("a", NASTY), (NASTY, "it is odd")]
    assert all(doc["uri"].startswith("data:image/") for doc in answer)
    after = answer[-1]["tags"]["number"]
    (rest,) = page.post("/quarantined", json={"parameters": {"run": "good", "after": after}}).json()["data"]
    assert (rest["id"], rest["uri"], rest["tags"]["split"]) == ("lost", None, "eval")


# what is done -------------------------------------------------------------------------------------------------------


def test_each_change_says_what_it_will_do_before_and_nothing_is_done_by_looking(own_page):
    for path, said in (
        ("good/promote", "every picture is embedded by good, and no longer by base"),
        ("good/promote", "if each new query is mapped to it"),
        ("bad/delete", "Nobody can bring that back."),
        ("bad/cancel", "What is served now does not change."),
    ):
        assert said in text_of(own_page.get(f"/ui/runs/{path}"))
    assert {run.name for run in own_page.service.store.all()} == {"good", "bad"}


def test_a_run_is_deleted_after_the_question_and_its_page_then_says_so(own_page):
    answer = own_page.submit("/ui/runs/bad/delete")
    assert (answer.status_code, answer.url.path) == (200, "/ui/")
    assert "The run was deleted, with all its files." in text_of(answer)
    assert not own_page.service.store.exists("bad")
    assert own_page.get("/ui/runs/bad").status_code == 404


def test_what_the_service_refuses_is_said_beside_the_question(own_page):
    store = own_page.service.store
    store.promote("good")
    answer = own_page.submit("/ui/runs/good/delete")
    assert answer.status_code == 409
    assert "Run 'good' is the version now served" in text_of(answer)
    assert store.exists("good")
    assert own_page.submit("/ui/runs/base/promote").status_code == 200
    assert store.promoted() == "base"
    assert "Since 20" in text_of(own_page.get("/ui/"))


def test_a_verdict_is_said_once_in_short_paragraphs_and_nothing_of_it_is_lost(own_page):
    store = own_page.service.store
    warnings = ["Few classes prove little: have 20 or more, not 2.", "Look at No. 5 of them."]
    sentences = ["mAP@R went from 0.100 to 0.200 on 8 queries: +0.100, which is better.", "It was promoted."]
    verdict = " ".join([*sentences, "Before you trust it:", *warnings])
    own_page.service.supervisor.close()
    make_run(store, "judged", [Document(id="a", uri=URI)], RunState.QUEUED, RunState.TRAINING)
    store.report("judged", Progress(phase="evaluating", warnings=warnings))
    training = text_of(own_page.get("/ui/runs/judged"))
    assert "It is being measured" in training
    assert "It trains" not in training
    store.advance("judged", RunState.SUCCEEDED, verdict=verdict)
    page = own_page.get("/ui/runs/judged").text
    for text in (*sentences, *warnings):
        assert page.count(text) == 1
    assert "<p>It was promoted.</p>" in page
    assert "What is said above." in page
    assert verdict in own_page.get("/ui/runs/judged/events").text
    status = RunStatus(run="judged", state="succeeded", verdict=verdict, warnings=warnings)
    asked = "".join(CHANGES["promote"].sentences(status, Readiness(True, "base", None, [])))
    assert [asked.count(text) for text in (*sentences, *warnings)] == [1, 1, 1, 1]


def test_what_cannot_be_done_is_said_in_place_of_the_question(own_page):
    own_page.service.supervisor.close()  # which would want to train it
    store = own_page.service.store
    make_run(store, "open", [])
    store.promote("good")
    for path, said in (
        ("good/delete", "good cannot be deleted, because it is served now."),
        ("open/delete", "open cannot be deleted, because it has not ended."),
        ("bad/cancel", "The run bad has ended, so there is nothing to cancel."),
        ("bad/start", "it was started already."),
        ("bad/promote", "bad cannot be served: it has no model."),
        ("open/promote", "open cannot be served: it has not ended."),
    ):
        answer = own_page.get(f"/ui/runs/{path}")
        assert (answer.status_code, said in text_of(answer)) == (200, True)
        assert 'method="post"' not in answer.text.partition("<main")[2].partition("</main")[0]
    for path in ("bad/delete", "open/start", "open/cancel", "base/promote"):
        assert '<section class="card confirm">' in own_page.get(f"/ui/runs/{path}").text
        assert "No, go back" in own_page.get(f"/ui/runs/{path}").text


def test_a_form_that_starts_nothing_says_why_and_keeps_what_was_typed(own_page):
    nothing = own_page.submit("/ui/start", {"epochs": "3"})
    assert (nothing.status_code, "Choose what it learns from" in text_of(nothing)) == (400, True)
    assert 'value="3"' in nothing.text
    wrong = own_page.submit("/ui/start", {"documents_from": "good", "epochs": "3.5"})
    assert (wrong.status_code, "Epochs must be a whole number" in text_of(wrong)) == (400, True)
    unknown = own_page.submit("/ui/start", {"documents_from": "gone"})
    assert (unknown.status_code, "there is no such run" in text_of(unknown)) == (404, True)


@pytest.mark.process
def test_a_run_is_started_from_what_was_said_and_from_earlier_documents_with_the_choices_made(own_page):
    say(own_page, "a", "label", label="pear")
    chosen = {
        "feedback": "1",
        "documents_from": "good",
        "promote": "never",
        "run": "next",
        "epochs": "2",
        "freeze": "1",
    }
    answer = own_page.submit("/ui/start", chosen)
    assert (answer.url.path, "The run was started." in text_of(answer)) == ("/ui/runs/next", True)
    run = own_page.service.store.get("next")
    assert (run.options.epochs, run.options.freeze, run.options.promote, run.options.kind) == (2, True, "never", "auto")
    with DocumentArrayMemmap(own_page.service.store.workspace.spool_file("next")) as docs:
        assert {doc.id: doc.tags["finetuner_label"] for doc in docs} == {"a": "pear", "b": "apple", NASTY: "apple"}
    cancelled = own_page.submit("/ui/runs/next/cancel")
    assert "The run was cancelled." in text_of(cancelled)


@pytest.mark.parametrize(("learns", "name"), [({"feedback": "1"}, "said-1"), ({"documents_from": "good"}, "again-1")])
def test_a_run_without_a_name_is_a_new_one_and_not_the_one_that_is_receiving_documents(own_page, learns, name):
    service = own_page.service
    service.supervisor.close()  # else it would start a trainer
    say(own_page, "a", "label", label="pear")
    docs = DocumentArray([Document(id="theirs", uri=URI, tags={"finetuner_label": "apple"})])
    service.receiver.receive(docs, FitParameters(run="theirs"))
    answer = own_page.submit("/ui/start", learns)
    assert (answer.url.path, "The run was started." in text_of(answer)) == (f"/ui/runs/{name}", True)
    theirs = service.store.get("theirs")
    assert (theirs.state, theirs.options.documents_from, theirs.options.feedback) == (RunState.RECEIVING, (), False)


def test_a_name_that_a_run_cannot_have_is_said_in_the_form(own_page):
    answer = own_page.submit("/ui/start", {"documents_from": "good", "run": NASTY})
    assert answer.status_code == 400
    assert "must be 1 to 64 letters" in text_of(answer)
    assert "<script>alert" not in answer.text


# labels -------------------------------------------------------------------------------------------------------------


def say(page: Visitor, id: str, what: str, **more: str) -> Any:
    return page.submit("/ui/runs/good/label", {"id": id, "what": what, "given": "text", **more})


def test_one_click_corrects_a_label_drops_a_document_and_takes_it_back(own_page):
    feedback = own_page.service.receiver.feedback
    corrected = say(own_page, "a", "label", label="pear")
    assert "The label is corrected for the next run." in text_of(corrected)
    assert "From now on: pear" in text_of(corrected)
    (doc,) = feedback.documents(0, feedback.last())
    assert (doc.id, doc.uri, doc.tags["finetuner_label"]) == ("a", URI, "pear")
    dropped = say(own_page, NASTY, "drop")
    assert "Left out of the next run" in text_of(dropped)
    undone = say(own_page, "a", "undo")
    assert "From now on: pear" not in text_of(undone)
    assert feedback.kept().total == 0


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ({"what": "explode", "label": "pear"}, 400, "This form says 'explode' of a document; it may say label, right,"),
        (
            {"what": "label", "label": "1_0", "given": "number"},
            422,
            "'1_0' is not plainly a number; type the digits",
        ),
        ({"what": "label", "label": "\u0663", "given": "number"}, 422, "type the digits alone, such as 3."),
    ],
)
def test_what_nobody_can_have_meant_of_a_document_is_refused_and_not_stored(own_page, said, status, words):
    feedback = own_page.service.receiver.feedback
    before = feedback.last()
    answer = say(own_page, "a", **said)
    assert answer.status_code == status
    assert words in text_of(answer)
    assert feedback.last() == before


def test_a_script_gets_the_labels_alone_and_errors_in_one_sentence(own_page):
    token = {"X-CSRF": re.findall(r'data-csrf="(\w+)"', own_page.get("/ui/").text)[0]}
    path, data = "/ui/runs/good/label", {"id": "a", "what": "label", "label": "pear", "given": "text"}
    answer = own_page.post(path, data=data, headers=token)
    assert "<html" not in answer.text
    assert "From now on: pear" in answer.text
    refused = own_page.post(path, data=data | {"id": "gone"}, headers=token)
    assert refused.status_code == 422
    assert refused.text.startswith("Nothing was stored of gone: run 'good' has no train document with this id")


# live ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def door(tmp_path_factory) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("live")
    fill(folder)
    with opened(folder) as running:
        running.post("/embed", [{"uri": URI}])  # the model is loaded
        yield running


def events_of(door: Opened, path: str) -> Iterator[tuple[str, Any]]:
    with requests.get(f"{door.address}{path}", stream=True, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))


def test_an_open_page_is_told_of_the_parts_that_changed_and_of_no_others(door):
    events = events_of(door, "/ui/live")
    name, parts = next(events)
    assert (name, set(parts)) == ("parts", {"served", "training", "waiting", "ended"})
    assert "<script>alert" not in "".join(parts.values())
    door.post("/promote", run="base")
    name, parts = next(events)
    assert (name, set(parts)) == ("parts", {"served"})
    assert "Since" in parts["served"]
    events.close()


@pytest.mark.process
def test_an_open_page_of_a_run_is_told_that_it_has_ended_or_was_deleted(door):
    store = door.service.store
    store.create("short")
    events = events_of(door, "/ui/runs/short/live")
    assert "It receives documents" in next(events)[1]["standing"]
    store.advance("short", RunState.CANCELLED)
    name, parts = next(events)
    assert (name, set(parts)) == ("parts", {"ended-now"})
    door.post("/delete", run="short")
    assert next(events) == ("gone", "The run 'short' is not there any more: it was deleted.")
    assert list(events) == []


def test_a_page_that_asks_whether_it_may_come_back_gets_no_stream(door):
    assert requests.head(f"{door.address}/ui/live", timeout=30).status_code == 200
    assert requests.head(f"{door.address}/ui/runs/nowhere/live", timeout=30).status_code == 404
