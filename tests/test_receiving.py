"""Documents come into runs: into which run, with which options, which of them can be used, when it is complete."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from desk import NOTHING, SILENCE, Clock, Desk, documents
from executor import Document, DocumentArray, DocumentArrayMemmap
from executor.documents import Match
from executor.errors import (
    BadRequest,
    Conflict,
    InvalidParameter,
    LimitExceeded,
    UnknownModel,
    WorkspaceError,
)
from executor.lifecycle.deadlines import START_GRACE_SECONDS, TOLD_SECONDS, Deadlines
from executor.lifecycle.receiving import Receiver
from executor.lifecycle.sources import Sources
from executor.store.feedback import FeedbackStore, Rule
from executor.store.run import RunState
from executor.store.runs import RunStore
from executor.store.spool import stored_form
from executor.store.workspace import Workspace


def open_files(below: Path) -> list[str]:
    """The files of a folder that this process has open."""
    return [file.path for file in psutil.Process().open_files() if Path(file.path).is_relative_to(below)]


# --- which run -------------------------------------------------------------------------------------------------------


def test_the_requests_of_a_call_without_a_run_belong_to_the_run_that_is_receiving(desk: Desk) -> None:
    first = desk.post(documents(2))
    second = desk.post(documents(2, "e"))
    assert first.name == second.name
    assert desk.stored(first.name) == ["d0", "d1", "e0", "e1"]
    assert first.state is second.state is RunState.RECEIVING


def test_a_call_without_a_run_joins_the_newest_of_several_that_are_receiving(desk: Desk) -> None:
    for run in ("old", "new"):
        desk.post(documents(1), run=run)
    assert desk.post(documents(1, "e")).name == "new"


def test_a_call_without_a_run_begins_one_where_none_is_receiving_any_more(desk: Desk) -> None:
    first = desk.post(documents(2), total=2)
    second = desk.post(documents(2))
    assert first.name != second.name
    assert (first.state, second.state) == (RunState.QUEUED, RunState.RECEIVING)


def test_a_run_of_a_new_name_is_begun_although_another_is_receiving(desk: Desk) -> None:
    desk.post(documents(1), run="a")
    assert desk.post(documents(1), run="b").name == "b"
    assert desk.post(documents(1, "e"), run="a").name == "a"
    assert desk.stored("a") == ["d0", "e0"]
    assert desk.stored("b") == ["d0"]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({}, "No run is receiving documents, so"), ({"run": "a"}, "Run 'a' has no documents, so")],
)
def test_nothing_cannot_be_started(desk: Desk, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        desk.post(NOTHING, start=True, **parameters)
    assert desk.store.all() == []


def test_no_more_runs_are_begun_than_may_be_open(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(max_open_runs=3)
    desk.post(documents(1), run="receiving")
    desk.post(documents(1), run="queued", total=1)
    desk.post(documents(1), run="training", total=1)
    desk.store.advance("training", RunState.TRAINING)
    with pytest.raises(LimitExceeded) as refused:
        desk.post(documents(1), run="more")
    assert str(refused.value) == (
        "3 runs are open, as many as max_open_runs allows; wait for one to end, cancel one, "
        "or raise that option of the executor."
    )
    desk.post(documents(1, "e"), run="receiving")  # which is open already
    desk.store.advance("training", RunState.SUCCEEDED)
    assert desk.post(documents(1), run="more").name == "more"


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_options_of_a_run_are_those_asked_for_over_those_of_the_operator(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(freeze=True, fit_defaults={"epochs": 7, "batch_size": 8})
    options = desk.post(documents(1), epochs=3).options
    assert (options.epochs, options.batch_size, options.freeze) == (3, 8, True)
    desk = make_desk(freeze=True, fit_defaults={"freeze": False})
    assert desk.post(documents(1), run="b").options.freeze is False
    assert desk.post(documents(1), run="c", freeze="head").options.freeze == ("head",)


def test_options_that_do_not_fit_together_begin_no_run(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(fit_defaults={"memory_size": 100})
    with pytest.raises(InvalidParameter, match="/fit: memory_size is 100, but a batch of 200 has to fit"):
        desk.post(documents(1), batch_size=200)
    assert desk.store.all() == []


def test_an_option_may_be_named_late_and_holds_from_then_on(desk: Desk) -> None:
    desk.post(documents(1), run="a", epochs=3)
    desk.post(documents(1, "e"), run="a", batch_size=8, epochs=3)
    desk.post(documents(1, "f"), run="a", seed=0)  # what it is by default, but now it is said
    options = desk.store.get("a").options
    assert (options.epochs, options.batch_size, options.seed) == (3, 8, 0)
    for contradiction in ({"epochs": 4}, {"batch_size": 9}, {"seed": 1}):
        (name,) = contradiction
        with pytest.raises(InvalidParameter, match=f"Parameter '{name}' of run 'a' is .* since an earlier request"):
            desk.post(documents(1, "g"), run="a", **contradiction)
    assert desk.store.get("a").options == options
    assert desk.stored("a") == ["d0", "e0", "f0"]  # a refused request leaves nothing


def test_an_option_of_the_operator_is_no_word_of_the_caller(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(fit_defaults={"epochs": 7})
    desk.post(documents(1), run="a")
    assert desk.post(documents(1, "e"), run="a", epochs=3).options.epochs == 3


def test_a_late_option_that_does_not_fit_the_others_is_refused(desk: Desk) -> None:
    desk.post(documents(1), run="a", memory_size=100)
    with pytest.raises(InvalidParameter, match="/fit: memory_size is 100, but a batch of 200 has to fit"):
        desk.post(documents(1, "e"), run="a", batch_size=200)
    assert desk.stored("a") == ["d0"]


def test_the_total_may_be_named_late_but_once(desk: Desk) -> None:
    desk.post(documents(1), run="a")
    assert desk.post(documents(1, "e"), run="a", total=9).total == 9
    assert desk.post(documents(1, "f"), run="a").total == 9
    assert desk.post(documents(1, "g"), run="a", total=9).total == 9
    with pytest.raises(InvalidParameter, match="Parameter 'total' of run 'a' is 9 already, not 10"):
        desk.post(documents(1, "h"), run="a", total=10)


def test_a_run_keeps_what_its_service_was_started_with(
    make_desk: Callable[..., Desk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/code"])
    desk = make_desk(input_size=32)
    configuration = desk.post(documents(1), epochs=3, batch_size=8).configuration
    assert configuration.options.input_size == 32
    assert sorted(configuration.given) == ["batch_size", "epochs"]
    assert (configuration.directory, configuration.path) == (os.getcwd(), (os.getcwd(), "/code"))


def test_a_run_starts_from_the_version_that_is_served_when_it_begins(desk: Desk) -> None:
    assert desk.post(documents(1), run="first", base="promoted", total=1).options.base == "base"
    desk.finish("first")
    desk.store.promote("first")
    assert desk.post(documents(1), run="second", base="promoted").options.base == "first"
    desk.store.promote("base")
    again = desk.post(documents(1, "e"), run="second", base="promoted")  # a retry is no contradiction
    assert again.options.base == "first"


def test_the_version_to_start_from_may_be_named_late(desk: Desk) -> None:
    desk.post(documents(1), run="first", total=1)
    desk.finish("first")
    desk.store.promote("first")
    desk.post(documents(1), run="second")
    assert desk.post(documents(1, "e"), run="second", base="promoted").options.base == "first"
    desk.post(documents(1), run="third")
    assert desk.post(documents(1, "e"), run="third", base="first").options.base == "first"
    with pytest.raises(InvalidParameter, match="'base' of run 'third' is 'first'"):
        desk.post(documents(1, "f"), run="third", base="base")


def test_a_version_without_a_model_is_nothing_to_start_from(desk: Desk) -> None:
    desk.post(documents(1), run="failed", total=1)
    desk.finish("failed", RunState.TRAINING, RunState.FAILED, model=False)
    for base in ("failed", "unknown"):
        with pytest.raises(UnknownModel, match=f"base='{base}' is no version to start from"):
            desk.post(documents(1), run="a", base=base)
    assert not desk.store.exists("a")
    desk.post(documents(1), run="b")
    with pytest.raises(UnknownModel):
        desk.post(documents(1, "e"), run="b", base="unknown")
    assert desk.store.get("b").options.base == "base"


# --- documents -------------------------------------------------------------------------------------------------------


def test_a_document_without_an_id_is_given_one_and_so_are_its_matches(desk: Desk) -> None:
    doc = Document(id=None, uri="data:,x", matches=[Match(id=None, uri="data:,x", tags={"finetuner_label": 1})])
    run = desk.post(DocumentArray([doc]))
    assert doc.id
    assert doc.matches[0].id
    assert desk.stored(run.name) == [doc.id]


def test_documents_are_in_the_split_that_they_were_sent_to(desk: Desk) -> None:
    run = desk.post(documents(2), split="train").name
    desk.post(documents(3, "e"), split="eval")
    assert desk.receiver.counts(run) == (2, 3)
    assert desk.stored(run, "eval") == ["e0", "e1", "e2"]


def test_a_request_that_is_sent_twice_counts_once(desk: Desk) -> None:
    for _ in range(2):
        run = desk.post(documents(2), run="a", total=3)
    assert run.state is RunState.RECEIVING
    assert desk.receiver.counts("a") == (2, 0)


def test_ids_that_several_documents_have_are_kept_and_each_split_counts_its_own(desk: Desk) -> None:
    stems = [f"{folder}/{stem}" for folder in ("cat", "dog") for stem in "ab"]
    docs = DocumentArray(
        Document(id=path[-1], uri=f"data:,{path}", tags={"finetuner_label": path[:3]}) for path in stems
    )
    for _ in range(2):  # a retry adds none
        desk.post(docs, run="a", total=9)
        desk.post(docs, run="a", split="eval")
    assert desk.receiver.counts("a") == (4, 4)
    assert desk.reasons("a") == {}


CONTRADICTION = "the same id and content came before with the label '0', not '1'; the first counts"


def test_a_document_that_contradicts_an_earlier_one_is_set_aside_once_and_has_arrived(desk: Desk) -> None:
    wrong = documents(1, tags={"finetuner_label": 1})
    for again in (desk.receiver, desk.another()):  # the request is repeated after a kill
        desk.receiver = again
        for _ in range(2):
            run = desk.post(documents(2) + wrong, run="a", total=4)
    assert run.state is RunState.RECEIVING
    assert (desk.receiver.counts("a"), desk.store.count_problems("a")) == ((2, 0), 1)
    assert CONTRADICTION in desk.reasons("a")["d0"]
    run = desk.post(documents(1, "e"), run="a")
    assert run.state is RunState.QUEUED
    assert desk.post(documents(2) + wrong, run="a") == run  # a retry that comes late is still answered
    with pytest.raises(Conflict):
        desk.post(documents(1, tags={"finetuner_label": 7}), run="a")


def test_bad_documents_with_one_id_count_each_once(desk: Desk) -> None:
    bad = DocumentArray(Document(id="bad", uri=f"/etc/{name}") for name in ("passwd", "group"))
    for _ in range(2):
        desk.post(bad, run="a")
        desk.post(bad, run="a", split="eval")
    assert desk.store.count_problems("a") == 4
    assert desk.post(documents(1), run="a", total=3).state is RunState.QUEUED


NO_CONTENT = "has neither uri nor blob nor buffer"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"uri": None}, f"it {NO_CONTENT}"),
        ({"uri": None, "buffer": b""}, "The file is empty: it has 0 bytes"),
        ({"uri": "/etc/passwd"}, "outside the allowed roots"),
        ({"uri": "http://host/x.png"}, "remote uris are off"),
        ({"tags": {"finetuner_label": [1]}}, "finetuner_label"),
        ({"matches": [Match(uri="data:,x", tags={"finetuner_label": 2})]}, "1"),
        ({"matches": [Match(id="m", tags={"finetuner_label": 1})]}, f"its match 'm' {NO_CONTENT}"),
        ({"matches": [Match(uri="/etc/passwd", tags={"finetuner_label": 1})]}, "outside the allowed roots"),
    ],
)
def test_a_document_that_cannot_be_used_is_set_aside_and_its_neighbours_are_stored(
    desk: Desk, fields: dict[str, Any], reason: str
) -> None:
    good, bad = documents(2), documents(1, "bad", **fields)
    run = desk.post(DocumentArray([good[0], bad[0], good[1]])).name
    assert desk.stored(run) == ["d0", "d1"]
    assert list(desk.reasons(run)) == ["bad0"]
    assert reason in desk.reasons(run)["bad0"]


@pytest.mark.parametrize(
    "fields",
    [
        {"uri": None, "blob": np.zeros((4, 4, 3), np.uint8)},
        {"uri": None, "buffer": b"x"},
        {"uri": None, "text": "x"},
        {"tags": {}},
        {"matches": [Match(buffer=b"x", tags={"finetuner_label": label}) for label in (1, -1)]},
    ],
)
def test_a_document_of_any_sort_is_stored_as_long_as_the_kind_is_left_to_the_whole_set(
    desk: Desk, fields: dict[str, Any]
) -> None:
    run = desk.post(documents(1, **fields)).name
    assert desk.stored(run) == ["d0"]
    assert desk.reasons(run) == {}


WITHOUT_CONTENT = [Match(tags={"finetuner_label": 1})]


@pytest.mark.parametrize(
    ("kind", "fits", "does_not"),
    [
        ("class", {"matches": WITHOUT_CONTENT}, {"tags": {}}),  # matches are nothing to it
        ("session", {"tags": {}, "matches": [Match(uri="data:,x", tags={"finetuner_label": 1})]}, {}),
        ("session", {"matches": [Match(uri="data:,x", tags={"finetuner_label": 1})]}, {"matches": WITHOUT_CONTENT}),
        ("unlabeled", {"tags": {}, "matches": WITHOUT_CONTENT}, {"uri": None}),
    ],
)
def test_where_the_kind_is_given_a_document_of_another_is_set_aside(
    desk: Desk, kind: str, fits: dict[str, Any], does_not: dict[str, Any]
) -> None:
    run = desk.post(documents(1, **fits) + documents(1, "bad", **does_not), kind=kind).name
    assert desk.stored(run) == ["d0"]
    assert list(desk.reasons(run)) == ["bad0"]


def test_a_run_without_labels_may_have_eval_documents_of_any_sort_but_no_wrong_labels(desk: Desk) -> None:
    session = [Match(uri="data:,x", tags={"finetuner_label": 1})]
    wrong = [Match(uri="data:,x", tags={"finetuner_label": 7})]
    docs = documents(1, "a") + documents(1, "b", tags={}) + documents(1, "c", matches=session)
    run = desk.post(docs + documents(1, "bad", matches=wrong), kind="unlabeled", split="eval").name
    assert desk.stored(run, "eval") == ["a0", "b0", "c0"]
    desk.post(documents(1, "t", matches=wrong), run=run)  # to train on: nobody looks at its matches
    assert desk.stored(run) == ["t0"]
    assert list(desk.reasons(run)) == ["bad0"]


def test_a_document_larger_than_allowed_is_set_aside_with_its_size(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(max_document_bytes=100)
    match = Match(buffer=b"x" * 20, uri="data:,x", blob=np.zeros(13, np.uint8), tags={"finetuner_label": 1})
    match.id = "m"
    # An id of 5 bytes, a uri of 7, tags of 15 + 8; the match has 20 + 7 + 13 and an id of 1, and the same tags.
    for name, size in (("just", 36 + 64), ("over", 37 + 64)):
        desk.post(documents(1, name, buffer=b"x" * (size - 99), matches=[match]), run="a")
    assert desk.stored("a") == ["just0"]
    assert "it has 101 bytes and max_document_bytes is 100" in desk.reasons("a")["over0"]


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "x" * 200},
        {"embedding": np.zeros(50, np.float32)},
        {"tags": {"x" * 200: 1}},
        {"tags": {"deep": [{"x": ["y" * 200]}]}},
        {"matches": [Match(text="x" * 200, uri="data:,x", tags={"finetuner_label": 1})]},
    ],
)
def test_all_of_a_document_counts_towards_its_size(make_desk: Callable[..., Desk], fields: dict[str, Any]) -> None:
    desk = make_desk(max_document_bytes=200)
    desk.post(documents(1, **fields) + documents(1, "i" * 200) + documents(1, "good"), run="a")
    assert desk.stored("a") == ["good0"]
    assert all("bytes and max_document_bytes is 200" in reason for reason in desk.reasons("a").values())


def test_matches_and_quarantined_documents_count_towards_the_documents_of_a_run(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(max_documents_per_run=10)
    session = documents(1, "s", matches=[Match(uri="data:,x", tags={"finetuner_label": 1}) for _ in range(3)])
    for _ in range(2):  # a repeated one is free
        desk.post(session, run="a")
        desk.post(documents(5, "bad", uri="/etc/passwd"), run="a")
    with pytest.raises(LimitExceeded) as refused:
        desk.post(documents(2, "worse", uri="/etc/passwd"), run="a")
    assert str(refused.value) == (
        "Run 'a' has 9 documents, matches and quarantined ones included, and max_documents_per_run is 10; "
        "start it, or raise that option of the executor."
    )
    desk.post(documents(1), run="a", split="eval")
    with pytest.raises(LimitExceeded, match="Run 'a' has 10 documents"):
        desk.post(documents(1, "e"), run="a")
    many = documents(1, matches=[Match(uri="data:,x", tags={"finetuner_label": 1}) for _ in range(10)])
    with pytest.raises(LimitExceeded, match="A new run was sent 11 documents, matches and quarantined ones included"):
        desk.post(many, run="b")


def test_an_integer_that_not_every_client_can_send_sets_its_document_aside(desk: Desk) -> None:
    run = desk.post(documents(1, tags={"x": 2**60}) + documents(1, "good", tags={"x": 2**40})).name
    assert desk.stored(run) == ["good0"]
    assert "an integer in tags is beyond 2**53" in desk.reasons(run)["d0"]


def test_no_more_documents_are_stored_than_a_run_may_have(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(max_documents_per_run=5)
    desk.post(documents(2), run="a")
    desk.post(documents(2, "e"), run="a", split="eval")
    with pytest.raises(
        LimitExceeded, match="Run 'a' has 4 documents and max_documents_per_run is 5; start it, or raise"
    ):
        desk.post(documents(2, "f"), run="a")
    assert desk.receiver.counts("a") == (2, 2)
    desk.post(documents(1, "f"), run="a")
    assert desk.receiver.counts("a") == (3, 2)


def test_a_request_with_more_documents_than_a_run_may_have_leaves_no_trace(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(max_documents_per_run=5)
    with pytest.raises(LimitExceeded) as refused:
        desk.post(documents(6), run="a")
    assert str(refused.value) == (
        "A new run was sent 6 documents and max_documents_per_run is 5; "
        "send fewer, or raise that option of the executor."
    )
    assert desk.store.all() == []
    assert desk.post(documents(5), run="full").name == "full"
    desk.post(documents(1), run="a")
    before = desk.store.get("a")
    with pytest.raises(LimitExceeded):
        desk.post(documents(6, "e"), run="a", total=3, epochs=7)
    assert desk.store.get("a") == before


def test_a_request_may_be_repeated_though_its_run_has_as_many_documents_as_it_may(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(max_documents_per_run=5)
    for docs, split in ((documents(3), "train"), (documents(2, "e"), "eval")) * 2:
        desk.post(docs, run="a", split=split)
    assert desk.receiver.counts("a") == (3, 2)
    with pytest.raises(LimitExceeded, match="Run 'a' has 5 documents"):
        desk.post(documents(4), run="a")  # three repeated ones and a new one


@pytest.mark.parametrize("deep", [40, 400])
def test_a_document_that_cannot_be_stored_harms_no_other_of_its_request(desk: Desk, deep: int) -> None:
    docs = documents()
    inner = docs[1].tags
    for _ in range(deep):
        inner["more"] = {}
        inner = inner["more"]
    run = desk.post(docs)
    assert desk.stored(run.name) == ["d0", "d2", "d3"]
    assert desk.reasons(run.name)["d1"].startswith("it cannot be stored")


# --- when it is complete ---------------------------------------------------------------------------------------------


def test_a_run_is_queued_when_all_its_train_documents_have_arrived(desk: Desk) -> None:
    desk.post(documents(3, "e"), run="a", split="eval", total=4)
    assert desk.post(documents(3), run="a").state is RunState.RECEIVING
    run = desk.post(documents(1, "f"), run="a")
    assert (run.state, run.train_rows, run.eval_rows) == (RunState.QUEUED, 4, 3)


def test_a_document_set_aside_has_arrived_all_the_same_if_it_was_to_train_on(desk: Desk) -> None:
    desk.post(documents(2, "bad", uri=None), run="a", split="eval", total=3)
    desk.post(documents(1, "worse", uri=None), run="a")
    assert desk.post(documents(1), run="a").state is RunState.RECEIVING
    run = desk.post(documents(1, "e"), run="a")
    assert (run.state, run.train_rows, run.eval_rows) == (RunState.QUEUED, 2, 0)


def test_more_documents_than_announced_are_kept(desk: Desk) -> None:
    run = desk.post(documents(5), run="a", total=3)
    assert (run.state, run.train_rows) == (RunState.QUEUED, 5)


def test_a_document_that_comes_again_has_arrived_again_also_for_a_service_that_was_started_again(
    desk: Desk,
) -> None:
    desk.post(DocumentArray([*documents(3), *documents(1)]), run="a", total=7)
    desk.post(documents(2, "bad", uri=None), run="a")
    desk.receiver.close()
    desk.receiver = desk.another()
    desk.receiver.go_on()
    run = desk.post(documents(1, "bad", uri=None), run="a")  # set aside before
    assert (run.state, run.repeated) == (RunState.RECEIVING, 2)  # it waits for others, or to be started
    run = desk.post(NOTHING, run="a")
    assert (run.state, run.train_rows, run.arrived, run.total) == (RunState.QUEUED, 3, 7, 7)


def test_eval_documents_and_copies_of_other_runs_are_not_among_those_that_arrived(desk: Desk) -> None:
    desk.post(documents(3), run="first", total=3)
    for _ in range(2):
        desk.post(documents(2, "e"), run="a", split="eval", documents_from=["first"])
    desk.post(documents(2, "f"), run="a", total=4)
    run = desk.post(NOTHING, run="a")
    assert (run.train_rows, run.arrived) == (5, 2)


def test_the_request_that_starts_a_run_may_correct_what_was_announced(desk: Desk) -> None:
    desk.post(documents(2), run="a", total=3)
    with pytest.raises(InvalidParameter, match="Parameter 'total' of run 'a' is 3 already, not 2"):
        desk.post(NOTHING, run="a", total=2)
    run = desk.post(NOTHING, run="a", start=True, total=2)
    assert (run.state, run.arrived, run.total) == (RunState.QUEUED, 2, 2)


def test_a_request_without_documents_starts_the_run_at_once(desk: Desk) -> None:
    desk.post(documents(2), run="a", total=9)
    assert desk.post(NOTHING, run="a").state is RunState.QUEUED
    desk.post(documents(2), run="b")
    assert desk.post(NOTHING).name == "b"
    assert [run.name for run in desk.store.in_state(RunState.QUEUED)] == ["a", "b"]


def test_a_run_that_is_to_start_waits_for_the_other_requests_of_the_call(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a", start=True)
    clock.now += START_GRACE_SECONDS / 2
    desk.receiver.queue_due()
    desk.post(documents(2, "e"), run="a", start=True)
    clock.now += START_GRACE_SECONDS * 0.9
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.RECEIVING
    clock.now += START_GRACE_SECONDS / 2
    desk.receiver.queue_due()
    run = desk.store.get("a")
    assert (run.state, run.train_rows) == (RunState.QUEUED, 4)


def test_a_run_starts_when_no_document_comes_any_more(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a")
    desk.post(documents(2), run="only-eval", split="eval")
    clock.now += SILENCE * 0.9
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.RECEIVING
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.QUEUED
    assert desk.store.get("only-eval").state is RunState.RECEIVING
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("only-eval").state is RunState.QUEUED  # it will fail and say why


@pytest.mark.parametrize("named", [True, False])
def test_a_run_waits_for_a_request_that_takes_long_to_come(desk: Desk, clock: Clock, named: bool) -> None:
    desk.post(documents(2), run="a", total=4)
    with desk.receiver.coming("a" if named else None):
        clock.now += 10 * SILENCE
        desk.receiver.queue_due()
        assert desk.post(documents(2, "e"), run="a").train_rows == 4


def test_a_request_holds_up_no_other_run_once_it_is_known_which_it_is_for(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a", total=4)
    with desk.receiver.coming(None) as is_for:
        clock.now += SILENCE
        desk.receiver.queue_due()
        assert desk.store.get("a").state is RunState.RECEIVING
        is_for("b")
        desk.receiver.queue_due()
        assert desk.store.get("a").state is RunState.QUEUED


@pytest.mark.parametrize("late", [True, False])
def test_a_run_does_not_wait_for_a_request_that_is_for_another_or_began_too_late(
    desk: Desk, clock: Clock, late: bool
) -> None:
    desk.post(documents(2), run="a", total=4)
    clock.now += SILENCE if late else 0.0
    with desk.receiver.coming("a" if late else "b"):
        clock.now += SILENCE
        desk.receiver.queue_due()
        assert desk.store.get("a").state is RunState.QUEUED


def test_a_run_waits_for_a_request_that_comes_elsewhere_as_long_as_it_is_told_so(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a", total=4)
    desk.post(documents(2), run="b", total=4)
    for of in (None, None, "a", "a"):  # which run it is for is known after a while
        desk.receiver.still_coming("request", of)
        clock.now += TOLD_SECONDS - 0.01
        desk.receiver.queue_due()
        held = ["a", "b"] if of is None else ["a"]
        assert [run.name for run in desk.store.in_state(RunState.RECEIVING)] == held
    desk.receiver.still_coming("another", "b")
    clock.now += 0.01
    desk.receiver.queue_due()
    assert desk.store.in_state(RunState.RECEIVING) == []


def test_a_request_that_comes_elsewhere_after_a_run_is_due_does_not_hold_it_up(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a", total=4)
    clock.now += SILENCE
    for _ in range(2):
        desk.receiver.still_coming("request", "a")
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.QUEUED


def test_a_request_that_brings_no_document_does_not_let_the_time_begin_anew(desk: Desk, clock: Clock) -> None:
    desk.post(documents(1), run="a", epochs=3)
    clock.now += SILENCE * 0.9
    with pytest.raises(InvalidParameter):
        desk.post(documents(1, "e"), run="a", epochs=4)
    clock.now += SILENCE * 0.2
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.QUEUED


def test_a_service_started_again_waits_for_further_documents_as_before(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a")
    desk.post(documents(2), run="only-eval", split="eval")
    desk.receiver.close()
    desk.receiver = desk.another()
    clock.now += 10 * SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.RECEIVING  # nobody has let it go on
    desk.receiver.go_on()
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.QUEUED
    assert desk.store.get("only-eval").state is RunState.RECEIVING
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("only-eval").state is RunState.QUEUED


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


# What a first request does, one after the other: the service is killed before one of them.
STEPS = [
    (Sources, "gather"),
    (FeedbackStore, "documents"),
    (FeedbackStore, "take"),
    (DocumentArrayMemmap, "take"),
    (RunStore, "quarantine"),
    (RunStore, "acknowledge"),
    (Deadlines, "arrived"),
]
WITHOUT_DOCUMENTS = STEPS[:3]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step[1])
@pytest.mark.parametrize(
    "asked", [{"total": 4}, {"start": True}, {"epochs": 2}, {"split": "eval"}], ids=lambda asked: next(iter(asked))
)
def test_a_run_whose_first_request_a_kill_broke_off_is_begun_anew_when_that_is_sent_again(
    desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str], asked: dict[str, Any]
) -> None:
    say(desk)
    sent = [*documents(2), *documents(1, prefix="bad", uri=None)]
    with monkeypatch.context() as patch:
        patch.setattr(*step, killed)
        with pytest.raises(KeyboardInterrupt):
            desk.post(DocumentArray(sent), run="a", feedback=True, **asked)
    start_again(desk, clock)
    assert not desk.store.exists("a")
    assert desk.post(documents(1)).name != "a"  # nor does it swallow the documents of others
    run = desk.post(DocumentArray(sent), run="a", feedback=True, **asked)
    assert (run.state, len(desk.reasons("a"))) == (RunState.RECEIVING, 1)
    assert sorted(desk.stored("a") + desk.stored("a", "eval")) == ["d0", "d1", "said"]
    assert [taker.name for taker in desk.receiver.feedback.takers()] == ["a"]


@pytest.mark.parametrize("step", [*WITHOUT_DOCUMENTS, (Receiver, "queue")], ids=lambda step: step[1])
def test_a_run_on_feedback_whose_only_request_a_kill_broke_off_is_begun_anew_when_that_is_sent_again(
    desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str]
) -> None:
    say(desk)
    with monkeypatch.context() as patch:
        patch.setattr(*step, killed)
        with pytest.raises(KeyboardInterrupt):
            desk.post(NOTHING, run="a", feedback=True)
    start_again(desk, clock)
    assert not desk.store.exists("a")
    assert desk.receiver.feedback.takers() == []
    run = desk.post(NOTHING, run="a", feedback=True)
    assert (run.state, desk.stored("a")) == (RunState.QUEUED, ["said"])


def test_a_run_that_a_request_was_answered_for_stays_whatever_a_kill_breaks_off(
    desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.post(documents(2), run="a")
    with monkeypatch.context() as patch:
        patch.setattr(DocumentArrayMemmap, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            desk.post(documents(2, "e"), run="a")
    start_again(desk, clock)
    assert (desk.store.get("a").state, desk.stored("a")) == (RunState.QUEUED, ["d0", "d1"])


def test_a_refused_request_of_which_a_kill_left_the_run_can_be_sent_again(
    desk: Desk, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise WorkspaceError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(DocumentArrayMemmap, "take", full)
        patch.setattr(Workspace, "discard", killed)
        with pytest.raises(KeyboardInterrupt):
            desk.post(documents(2), run="a")
    start_again(desk, clock)
    assert desk.post(documents(2), run="a").state is RunState.RECEIVING
    assert desk.stored("a") == ["d0", "d1"]


def say(desk: Desk) -> None:
    """A document of feedback."""
    doc = Document(id="said", uri="data:,y", tags={"finetuner_label": 1})
    desk.receiver.feedback.put([("said", stored_form(doc))], Rule(100, 1 << 20, 100.0))


def start_again(desk: Desk, clock: Clock) -> None:
    """Another service goes on, and waits as long as it waits for documents."""
    desk.receiver.close()
    desk.receiver = desk.another()
    desk.receiver.go_on()
    clock.now += 2 * SILENCE
    desk.receiver.queue_due()


def test_a_service_started_again_ends_the_receiving_of_a_run_whose_documents_were_all_set_aside(
    desk: Desk, clock: Clock
) -> None:
    desk.post(documents(2, uri=None), run="a")
    desk.post(documents(2, uri=None), run="only-eval", split="eval")
    desk.receiver.close()
    desk.receiver = desk.another()
    desk.receiver.go_on()
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.QUEUED  # it will fail and say why
    assert desk.store.get("only-eval").state is RunState.RECEIVING
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("only-eval").state is RunState.QUEUED


def test_whoever_tends_the_runs_is_woken_by_each_request_that_is_taken(desk: Desk) -> None:
    desk.post(documents(1), run="a")
    desk.post(documents(1, "e"), run="a")
    assert desk.woken == 2
    with pytest.raises(BadRequest):
        desk.post(NOTHING, run="b")
    assert desk.woken == 2


# --- too late --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [(), (RunState.TRAINING,), (RunState.TRAINING, RunState.SUCCEEDED), (RunState.CANCELLED,)],
    ids=["queued", "training", "succeeded", "cancelled"],
)
def test_new_documents_for_a_run_that_takes_no_more_are_refused_with_its_state(
    desk: Desk, way: tuple[RunState, ...]
) -> None:
    desk.post(documents(2), run="a", total=2)
    for state in way:
        desk.store.advance("a", state)
    before = desk.store.get("a")
    with pytest.raises(
        Conflict, match=f"Run 'a' is {before.state.value} and takes no more documents; send them to another"
    ):
        desk.post(documents(2) + documents(1, "late"), run="a")
    assert desk.stored("a") == ["d0", "d1"]
    assert desk.store.get("a") == before


def test_a_repeated_request_is_answered_as_it_was_though_the_run_has_gone_on(desk: Desk) -> None:
    docs = documents(2) + documents(1, "bad", uri=None)
    desk.post(documents(1, "e"), run="a", split="eval", total=3)
    before = desk.post(docs, run="a")
    assert before.state is RunState.QUEUED
    assert desk.post(docs, run="a", total=3, epochs=before.options.epochs) == before
    assert desk.post(documents(1, "e"), run="a", split="eval") == before
    assert open_files(desk.store.workspace.run_folder("a")) == []


def test_a_start_is_repeated_without_harm_until_the_run_has_ended(desk: Desk) -> None:
    desk.post(documents(2), run="a")
    for _ in range(2):
        assert desk.post(NOTHING, run="a").state is RunState.QUEUED
    desk.finish("a")
    with pytest.raises(Conflict, match="Run 'a' is succeeded"):
        desk.post(NOTHING, run="a")


# --- letting go ------------------------------------------------------------------------------------------------------


def test_a_run_that_is_not_receiving_is_not_queued_again(desk: Desk) -> None:
    desk.post(documents(2), run="a", total=2)
    before = desk.store.get("a"), desk.store.events("a")
    desk.receiver.queue("a")
    desk.receiver.queue("unknown")
    assert (desk.store.get("a"), desk.store.events("a")) == before


def test_a_run_that_takes_no_more_documents_has_no_file_open(desk: Desk) -> None:
    folder = desk.store.workspace.run_folder("a")
    desk.post(documents(2), run="a")
    assert open_files(folder)
    desk.receiver.queue("a")
    assert open_files(folder) == []
    assert desk.receiver.counts("a") == (2, 0)  # whoever has looked before it was queued
    assert open_files(folder) == []


def test_a_released_run_is_not_waited_for_any_more(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a", start=True)
    desk.store.advance("a", RunState.CANCELLED)
    desk.receiver.release("a")
    assert open_files(desk.store.workspace.run_folder("a")) == []
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.CANCELLED


def test_a_run_cancelled_by_another_hand_is_left_alone_when_its_time_has_come(desk: Desk, clock: Clock) -> None:
    desk.post(documents(2), run="a")
    desk.store.advance("a", RunState.CANCELLED)
    clock.now += SILENCE
    desk.receiver.queue_due()
    assert desk.store.get("a").state is RunState.CANCELLED


def test_a_run_is_deleted_with_its_documents_and_a_new_one_of_its_name_has_none_of_them(
    desk: Desk, clock: Clock
) -> None:
    desk.post(documents(2), run="a")
    with pytest.raises(Conflict, match="cancel it before"):
        desk.receiver.delete("a")
    assert desk.receiver.counts("a") == (2, 0)
    desk.store.advance("a", RunState.CANCELLED)
    desk.receiver.delete("a")
    assert desk.receiver.counts("a") == (0, 0)
    assert open_files(desk.store.workspace.root / "deleted") == []
    desk.post(documents(1, "e"), run="a", split="eval")
    clock.now += SILENCE
    desk.receiver.queue_due()  # its time is not that of the former one
    assert desk.store.get("a").state is RunState.RECEIVING
    assert (desk.receiver.counts("a"), desk.stored("a", "eval")) == ((0, 1), ["e0"])


def test_closing_closes_all_files(desk: Desk) -> None:
    for run in "ab":
        desk.post(documents(1), run=run)
    desk.receiver.close()
    assert open_files(desk.store.workspace.root / "runs") == []
