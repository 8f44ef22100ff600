"""What users say is kept, the latest word of each id; runs are trained on it, and on what earlier runs were sent."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import coloured, encoded, images
from desk import opened
from executor import Document, DocumentArray, DocumentArrayMemmap
from executor.documents import Event, FeedbackStatus, Match, RunStatus
from executor.errors import BadRequest, Conflict, LimitExceeded, UnknownRun
from executor.lifecycle.feedback import Feedback
from executor.lifecycle.receiving import Receiver
from executor.lifecycle.sources import copied
from executor.parameters import FitParameters, parse_executor_options
from executor.store import feedback as keeping
from executor.store.run import Run, RunState
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from executor.web.pictures import pictures_of
from serving import DOOR, Service

RECEIVING, QUEUED, TRAINING, SUCCEEDED, FAILED, CANCELLED = RunState


class Desk:
    """What a service does with `/feedback` and `/fit`, without a trainer."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.options = parsed = parse_executor_options({"receive_timeout": 1000, **options}).with_roots()
        self.store = RunStore(Workspace(folder))
        self.receiver = Receiver(self.store, parsed)
        self.feedback = Feedback(self.store, self.receiver.feedback, parsed, self.receiver.fault)

    def say(self, *docs: Document) -> FeedbackStatus:
        return self.feedback.receive(docs)

    def fit(self, *docs: Document, **parameters: Any) -> Run:
        return self.store.get(self.receiver.receive(DocumentArray(docs), FitParameters(**parameters)))

    def trained_on(self, run: str) -> list[Document]:
        with DocumentArrayMemmap(self.store.workspace.spool_file(run)) as docs:
            return list(docs)

    def ids(self, run: str) -> list[str]:
        return [doc.id for doc in self.trained_on(run)]

    def end(self, run: str, state: RunState = SUCCEEDED) -> None:
        self.store.advance(run, TRAINING)
        self.store.advance(run, state)

    def close(self) -> None:
        self.receiver.close()
        self.store.close()


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    yield from opened(Desk, tmp_path / "workspace")


def labelled(id: str | None, label: Any = 1, content: str | None = "x", **tags: Any) -> Document:
    uri = None if content is None else f"data:,{content}"
    return Document(id=id, uri=uri, tags={"finetuner_label": label, **tags})


def click(id: str | None, *labels: int, content: str = "x") -> Document:
    matches = [
        Match(id=f"m{n}", uri=f"data:,{content}{n}", tags={"finetuner_label": sign}) for n, sign in enumerate(labels)
    ]
    return Document(id=id, uri=f"data:,{content}", matches=matches)


def withdrawal(id: str | None) -> Document:
    return Document(id=id, tags={"finetuner_withdrawn": True})


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_sessions_and_labels_are_counted_and_a_restart_has_them(desk, make_desk):
    answer = desk.say(labelled("a"), click("q", 1, -1))
    assert (answer.stored, answer.total, answer.since_last_run) == (2, 2, 2)
    assert (answer.labelled, answer.sessions, answer.skipped) == (1, 1, 0)
    desk.close()
    assert make_desk().say().total == 2


def test_the_same_words_again_count_once_and_a_new_word_replaces(desk):
    desk.say(labelled("a", "apple", shop="one", aisle=3), click("q", 1, -1))
    again = desk.say(labelled("a", "apple", aisle=3, shop="one"), click("q", 1, -1))
    assert (again.stored, again.total, again.since_last_run) == (2, 2, 2)
    desk.say(labelled("a", "pear"))
    run = desk.fit(run="r", feedback=True, kind="class").name
    assert [(doc.id, doc.tags["finetuner_label"]) for doc in desk.trained_on(run)] == [("a", "pear")]


def test_a_document_without_an_id_counts_once_too(desk):
    desk.say(labelled(None, "apple"))
    answer = desk.say(labelled(None, "apple"), labelled(None, "pear"))
    assert answer.total == 2
    session, again = click(None, 1, -1), click(None, 1, -1)
    for number, match in enumerate([*session.matches, *again.matches]):
        match.id = f"a gateway's {number}"
    assert desk.say(session).total == desk.say(again).total == 3


def test_what_our_own_door_reads_gets_the_ids_that_the_same_documents_get(desk):
    said = [
        {"blob": [[[0, 0, 0]]], "tags": {"finetuner_label": 1}},
        {"blob": [[[9, 9, 9]]], "tags": {"finetuner_label": 1}},
        {"uri": "q.jpg", "matches": [{"uri": "a.jpg", "tags": {"finetuner_label": 1}}]},
        {"uri": "q.jpg", "matches": [{"uri": "b.jpg", "tags": {"finetuner_label": 1}}]},
    ]
    assert desk.say(*pictures_of(said)).total == 4
    assert desk.say(*(Document(**fields, id=None) for fields in said)).total == 4


def test_a_word_can_be_withdrawn_and_said_again(desk):
    desk.say(labelled("a"), labelled("b"))
    assert desk.say(withdrawal("a")).total == 1
    assert desk.say(withdrawal("a"), withdrawal("never said")).since_last_run == 1
    assert desk.say(labelled("a")).total == 2
    assert "no id" in desk.say(withdrawal(None)).problems[0].reason


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (Document(id="bad", uri="data:,x"), "neither matches nor"),
        (Document(id="bad", tags={"finetuner_label": 1}), "neither uri nor blob"),
        (labelled("bad", 1.5), "a label is an integer or a string"),
        (click("bad", 1, 2), "must be 1 or -1"),
        (Document(id="bad", tags={"finetuner_withdrawn": "false"}), "is 'false'; give true to take back"),
        (Document(id="bad", tags={"finetuner_withdrawn": 1}), "is 1; give true to take back"),
        (Document(id="bad", uri="/etc/passwd", tags={"finetuner_label": 1}), "allowed_roots"),
        (labelled("bad", content="y" * 3000), "max_document_bytes"),
    ],
)
def test_a_bad_document_is_said_and_sinks_nothing(make_desk, document, reason):
    answer = make_desk(max_document_bytes=2000).say(labelled("good"), document)
    assert (answer.stored, answer.total, answer.skipped) == (1, 1, 1)
    assert answer.problems[0].id == "bad"
    assert reason in answer.problems[0].reason


def test_two_words_of_one_document_in_a_request_count_once_and_the_later_one_is_kept(make_desk):
    desk = make_desk()
    answer = desk.say(labelled("a", 1), labelled("b", 1), labelled("a", 2))
    assert (answer.stored, answer.total) == (2, 2)
    assert desk.feedback.said(["a"]) == [{"id": "a", "label": 2}]


def test_a_bad_match_without_an_id_is_named_by_its_place(make_desk):
    (said,) = pictures_of([{"uri": "data:,q", "matches": [{"uri": "data:,m", "tags": {"finetuner_label": 5}}]}])
    (problem,) = make_desk().say(said).problems
    assert re.search(r"^Session '(feedback-\w{24})': match '\1-0' is labelled 5", problem.reason)


def test_the_rule_removes_the_oldest_and_says_how_many(make_desk):
    desk = make_desk(keep_feedback={"documents": 3})
    desk.say(*(labelled(f"d{n}") for n in range(5)))
    answer = desk.say(labelled("d2", "a new word"))
    assert (answer.total, answer.thinned) == (3, 2)
    assert sorted(desk.ids(desk.fit(run="r", feedback=True).name)) == ["d2", "d3", "d4"]
    assert desk.say(labelled("d5")).thinned == 3


def test_the_rule_limits_bytes_and_age(make_desk, monkeypatch):
    desk = make_desk(keep_feedback={"bytes": 5000, "days": 2})
    desk.say(*(labelled(f"d{n}", content="y" * 1000) for n in range(9)))
    answer = desk.say()
    assert 0 < answer.total < 5
    assert answer.disk_bytes <= 5000
    later = keeping.now() + 3 * 86_400
    monkeypatch.setattr(keeping, "now", lambda: later)
    assert desk.say(labelled("new")).total == 1


# --- what runs are trained on ----------------------------------------------------------------------------------------


def test_a_run_without_documents_of_its_own_is_trained_on_all_feedback(desk):
    desk.say(labelled("a"), labelled("b"), labelled("c"))
    desk.say(withdrawal("b"))
    run = desk.fit(feedback=True)
    assert run.state is QUEUED
    assert run.train_rows == 2
    assert desk.ids(run.name) == ["a", "c"]
    assert copied(desk.store, run.name) == {"feedback": 2}
    assert "2 documents of feedback" in desk.store.events(run.name)[1][3]
    after = desk.say(labelled("d"))
    assert (after.since_last_run, after.last_run) == (1, run.name)


def test_a_withdrawal_of_what_a_run_was_trained_on_is_news(desk):
    desk.say(labelled("a"), labelled("b"))
    desk.fit(feedback=True)
    answer = desk.say(withdrawal("a"))
    assert (answer.total, answer.since_last_run) == (1, 1)


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
def test_what_a_run_that_came_to_nothing_had_taken_is_news_again(desk, state):
    desk.say(labelled("a"))
    run = desk.fit(feedback=True).name
    assert desk.say().since_last_run == 0
    desk.end(run, state)
    assert desk.say().since_last_run == 1
    desk.receiver.delete(run)
    assert desk.say().since_last_run == 1


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", [(keeping.FeedbackStore, "give_back"), (RunStore, "delete")], ids=lambda step: step[1])
def test_what_such_a_run_had_taken_is_news_again_also_after_a_kill_while_it_is_deleted(
    desk, make_desk, monkeypatch, step, done
):
    desk.say(labelled("a"))
    run = desk.fit(feedback=True).name
    desk.end(run, FAILED)
    whole = getattr(*step)

    def killed(*arguments: Any) -> None:
        if done:
            whole(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*step, killed)
        with pytest.raises(KeyboardInterrupt):
            desk.receiver.delete(run)
    desk.close()
    again = make_desk()
    assert again.say().since_last_run == 1
    if again.store.exists(run):
        again.receiver.delete(run)
    assert again.say().since_last_run == 1


def test_what_a_run_has_learned_from_is_no_news_though_the_run_is_deleted_or_cannot_be(desk):
    desk.say(labelled("a"))
    run = desk.fit(feedback=True).name
    with pytest.raises(Conflict, match="cancel it before"):
        desk.receiver.delete(run)
    assert desk.say().since_last_run == 0
    desk.end(run)
    desk.receiver.delete(run)
    assert desk.say().since_last_run == 0


def test_earlier_runs_lend_their_documents_and_may_then_be_deleted(desk):
    desk.fit(labelled("a"), labelled("b"), run="first", start=True)
    desk.fit(labelled("e"), run="first", split="eval")
    desk.receiver.queue("first")
    desk.fit(labelled("c"), run="second", total=1)
    third = desk.fit(labelled("d"), run="third", documents_from=["first", "second"], total=1)
    assert third.state is QUEUED, "total counts what is posted"
    assert sorted(desk.ids("third")) == ["a", "b", "c", "d"]
    assert copied(desk.store, "third") == {"first": 2, "second": 1}
    desk.end("first")
    desk.receiver.delete("first")
    assert sorted(desk.ids("third")) == ["a", "b", "c", "d"]
    with pytest.raises(UnknownRun, match=r"'first', and there is no such run\. If it was deleted, its documents"):
        desk.fit(run="fourth", documents_from=["first"])
    assert not desk.store.exists("fourth")


def test_the_latest_word_counts_in_the_documents_of_an_earlier_run_too(desk):
    desk.say(labelled("a", "apple"), labelled("b", "apple"), labelled("c", "apple"))
    desk.fit(labelled("posted"), run="first", feedback=True, total=1)
    desk.say(labelled("a", "pear"), withdrawal("b"), labelled("new", "apple"))

    def labels(run: str) -> dict[str, Any]:
        return {doc.id: doc.tags["finetuner_label"] for doc in desk.trained_on(run)}

    desk.fit(run="both", documents_from="first", feedback=True)
    assert labels("both") == {"a": "pear", "c": "apple", "new": "apple", "posted": 1}
    desk.fit(run="one", documents_from="first")
    assert labels("one") == {"a": "pear", "c": "apple", "posted": 1}


def test_what_is_said_of_a_document_that_was_posted_counts_in_the_next_run(desk):
    desk.fit(*(labelled(id, "apple", content=id) for id in "abcd"), run="first", total=4)
    desk.say(labelled("a", "pear", content="a"))  # the same picture
    desk.say(labelled("b", "pear", content="another"))  # another picture by the same name
    answer = desk.feedback.receive([withdrawal("c"), labelled("d", "pear", content=None)], run="first")
    assert (answer.stored, answer.skipped, answer.since_last_run) == (2, 0, 4)

    def labels(run: str) -> list[tuple[str, str]]:
        assert desk.store.count_problems(run) == 0
        return sorted((doc.id, doc.tags["finetuner_label"]) for doc in desk.trained_on(run))

    desk.fit(run="both", documents_from="first", feedback=True)
    assert labels("both") == [("a", "pear"), ("b", "apple"), ("b", "pear"), ("d", "pear")]
    desk.fit(run="one", documents_from="first")
    assert labels("one") == [("a", "pear"), ("b", "apple"), ("d", "pear")]
    desk.say(withdrawal("c"), withdrawal("d"))  # takes back what was said, and leaves out nothing
    desk.fit(run="again", documents_from="first", feedback=True)
    assert labels("again") == [("a", "pear"), ("b", "apple"), ("b", "pear"), ("c", "apple"), ("d", "apple")]


@pytest.mark.parametrize("sent", ["buffer", "data uri"])
def test_a_path_and_the_bytes_of_its_file_are_one_picture(make_desk, tmp_path, sent):
    file, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    file.write_bytes(b"picture")
    other.write_bytes(b"another")
    desk = make_desk(allowed_roots=[str(tmp_path)])
    posted = labelled("a", "apple", content=None)
    if sent == "buffer":
        posted.buffer = b"picture"
    else:
        posted.uri = f"data:application/octet-stream;base64,{base64.b64encode(b'picture').decode()}"
    desk.fit(posted, run="first", total=1)
    desk.say(Document(id="a", uri=str(other), tags={"finetuner_label": "pear"}))
    desk.fit(run="another", documents_from="first", feedback=True)
    assert sorted(doc.tags["finetuner_label"] for doc in desk.trained_on("another")) == ["apple", "pear"]
    desk.say(Document(id="a", uri=str(file), tags={"finetuner_label": "pear"}))
    desk.fit(run="same", documents_from="first", feedback=True)
    assert [doc.tags["finetuner_label"] for doc in desk.trained_on("same")] == ["pear"]


def test_what_is_said_of_a_document_of_a_run_keeps_its_image_and_its_group(desk):
    desk.fit(labelled("a", "apple", content="picture", finetuner_group="burst"), run="first", total=1)
    desk.feedback.receive([labelled("a", "pear", content=None)], run="first")
    desk.fit(run="next", feedback=True)
    (doc,) = desk.trained_on("next")
    assert (doc.uri, doc.tags["finetuner_group"], doc.tags["finetuner_label"]) == ("data:,picture", "burst", "pear")


def test_a_document_that_a_run_does_not_have_or_has_twice_is_not_guessed(desk):
    desk.fit(labelled("a", "apple", content="1"), labelled("a", "apple", content="2"), run="first", total=2)
    answer = desk.feedback.receive([withdrawal("a"), labelled("b", "pear", content=None)], run="first")
    assert answer.stored == 0
    several, none = (problem.reason for problem in answer.problems)
    assert "several documents with the id 'a'" in several
    assert "no train document with this id" in none
    with pytest.raises(UnknownRun):
        desk.feedback.receive([withdrawal("a")], run="nowhere")


def test_sources_without_documents_and_runs_that_are_receiving_are_refused(make_desk):
    desk = make_desk(max_documents_per_run=3)
    with pytest.raises(BadRequest, match="have no documents yet; post some to /feedback"):
        desk.fit(feedback=True)
    desk.fit(labelled("a"), run="open")
    with pytest.raises(Conflict, match="'open', which is still receiving"):
        desk.fit(run="r", documents_from=["open"])
    desk.say(*(labelled(f"d{n}") for n in range(4)))
    with pytest.raises(LimitExceeded, match="have 4 documents and max_documents_per_run is 3"):
        desk.fit(run="r", feedback=True)
    assert not desk.store.exists("r")


def test_copies_of_feedback_that_an_earlier_run_has_do_not_count_twice(make_desk):
    desk = make_desk(max_documents_per_run=30)
    desk.say(*(labelled(f"said{n}") for n in range(20)))
    desk.fit(*(labelled(f"sent{n}") for n in range(5)), run="first", feedback=True, total=5)
    desk.fit(run="between", documents_from=["first"])
    for run, source in (("second", "first"), ("third", "between"), ("fourth", "third")):
        made = desk.fit(run=run, documents_from=[source], feedback=True)
        assert (made.state, made.train_rows) == (QUEUED, 25)
    with pytest.raises(LimitExceeded, match="have 50 documents"):
        desk.fit(run="fifth", documents_from=["first", "second"])


def test_what_an_older_release_has_written_of_copies_of_feedback_counts(make_desk):
    desk = make_desk(max_documents_per_run=30)
    desk.say(*(labelled(f"said{n}") for n in range(20)))
    desk.fit(*(labelled(f"sent{n}") for n in range(5)), run="first", feedback=True, total=5)
    file = desk.store.workspace.sources_file("first")
    file.write_text('{"complete": true, "upto": 20, "from": {"feedback": 20}, "quarantined": 0}')
    assert desk.fit(run="second", documents_from=["first"], feedback=True).train_rows == 25


def test_documents_that_do_not_fit_the_kind_are_quarantined(desk):
    desk.say(labelled("a"), labelled("b"), click("q", 1, -1))
    run = desk.fit(run="r", feedback=True, kind="class")
    assert desk.ids(run.name) == ["a", "b"]
    desk.fit(run="s", feedback=True, kind="session")
    assert desk.ids("s") == ["q"]
    assert {id for id, _ in desk.store.problems("s")} == {"a", "b"}


def test_a_service_killed_while_it_copies_goes_on_with_the_same_words(desk, make_desk, monkeypatch):
    desk.say(*(labelled(f"d{n}") for n in range(4)))
    documents = keeping.FeedbackStore.documents

    def killed(*arguments: Any) -> Iterator[Document]:
        yield from list(documents(*arguments))[:2] * 50  # a chunk of them
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(keeping.FeedbackStore, "documents", killed)
        with pytest.raises(KeyboardInterrupt):
            desk.fit(run="r", feedback=True)
    assert desk.ids("r") == ["d0", "d1"]
    desk.receiver.queue_due()
    assert desk.store.get("r").state is RECEIVING
    desk.close()
    again = make_desk()
    again.say(labelled("too late"))
    assert again.fit(run="r", feedback=True).state is QUEUED
    assert again.ids("r") == ["d0", "d1", "d2", "d3"]
    assert again.say().since_last_run == 1


# --- through a service -----------------------------------------------------------------------------------------------


def as_json(doc: Document) -> dict[str, Any]:
    said: dict[str, Any] = {"id": doc.id, "uri": doc.uri, "tags": doc.tags}
    return said | {"matches": [{"uri": match.uri, "tags": match.tags} for match in doc.matches]}


@pytest.mark.flow
@pytest.mark.parametrize("protocol", ["grpc", "http", "websocket"])
def test_feedback_is_taken_over_every_protocol(service: Service, protocol: str):
    before = service.post("/feedback", returns=FeedbackStatus)[0].total
    docs = DocumentArray([labelled(f"{protocol}-a"), click(f"{protocol}-q", 1, -1), labelled(f"{protocol}-bad", 1.5)])
    (answer,) = service.post("/feedback", docs, protocol=protocol, returns=FeedbackStatus)
    assert (answer.stored, answer.total, answer.skipped) == (2, before + 2, 1)
    assert answer.problems[0].id == f"{protocol}-bad"


@pytest.mark.flow
def test_our_own_door_takes_documents_without_ids(service: Service):
    before = service.http("/feedback").json()["data"][0]["total"]
    said = [{"blob": [[[grey, grey, grey]]], "tags": {"finetuner_label": "grey"}} for grey in (3, 7)]
    for _ in range(2):
        answer = service.http("/feedback", said, protocol=DOOR)
        assert answer.status_code == 200, answer.text
    assert answer.json()["data"][0]["total"] == before + 2


@pytest.mark.flow
def test_plain_json_without_ids_of_matches_counts_once(service: Service):
    before = service.http("/feedback").json()["data"][0]["total"]
    for _ in range(2):
        answer = service.http("/feedback", [as_json(click("json-q", 1, -1))])
        assert answer.status_code == 200, answer.text
    (said,) = answer.json()["data"]
    assert (said["stored"], said["total"]) == (1, before + 1)
    undone = service.http("/feedback", [{"id": "json-q", "tags": {"finetuner_withdrawn": True}}]).json()["data"][0]
    assert undone["total"] == before


@pytest.mark.flow
def test_an_unknown_parameter_is_refused_by_name(service: Service):
    answer = service.http("/feedback", [as_json(labelled("a"))], runs="r")
    assert answer.status_code >= 400
    assert "/feedback has no parameter 'runs'" in answer.text


@pytest.mark.flow
def test_nothing_that_was_acknowledged_is_lost_by_a_kill_and_a_run_learns_from_it(tmp_path: Path):
    """Clicks come by plain HTTP while a run trains. The service is killed, started again, and trains on them."""
    acknowledged = set()
    with Service(tmp_path / "workspace", tmp_path / "cwd", fit_defaults={"epochs": 200, "batch_size": 16}) as service:
        service.post("/fit", images(12), returns=RunStatus, run="busy", total=12)
        service.wait("busy", until=lambda status: status.state == "training")
        for number in range(20):
            doc = images(1, first_seed=number, prefix=f"f{number}-")[0]
            said = {"id": doc.id, "uri": png(doc.blob), "tags": {"finetuner_label": number % 2}}
            assert service.http("/feedback", [said]).json()["data"][0]["stored"] == 1
            acknowledged.add(doc.id)
        assert service.status("busy").state == "training"
        service.kill()
        service.start()
        service.cancel("busy")
        (kept,) = service.post("/feedback", returns=FeedbackStatus)
        assert kept.total == len(acknowledged)
        service.http("/fit", run="learned", feedback=True, documents_from=["busy"], epochs=1, kind="class")
        status = service.wait("learned")
        assert (status.state, status.error) == ("succeeded", None)
        assert status.train_documents == 32
        assert status.sources == {"feedback": 20.0, "busy": 12.0}
        with DocumentArrayMemmap(service.run_folder("learned") / "documents.sqlite") as docs:
            assert acknowledged <= set(docs.ids())


def png(image: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


@pytest.mark.flow
def test_a_run_on_sessions_gets_hard_negatives_and_is_measured_on_held_out_ones(service: Service, run: str):
    docs = DocumentArray(
        Document(
            id=f"hard-{n}",
            blob=coloured(n % 4, n),
            matches=[
                Match(id=f"hard-{n}{sign}", blob=coloured(n + (sign < 0), 100 + n), tags={"finetuner_label": sign})
                for sign in (1, -1)
            ],
        )
        for n in range(12)
    )
    service.post("/fit", docs, returns=RunStatus, run=run, total=12, hard_negatives=2, epochs=1, val_split=0.25)
    status = service.wait(run)
    assert (status.state, status.error) == ("succeeded", None)
    assert status.metrics, "nothing was held out"
    told = [event.message for event in service.post("/events", returns=Event, run=run) if event.kind == "negatives"]
    assert len(told) == 1
    assert "hard negatives were added to" in told[0]
