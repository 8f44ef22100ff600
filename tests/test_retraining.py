"""Runs that start by themselves: when, on what, with which share of the budget, and how a promotion is undone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import images
from executor.documents import FeedbackStatus, RunStatus
from executor.lifecycle import retraining
from executor.lifecycle.retraining import Retrainer
from executor.parameters import FitParameters, Retrain
from executor.store import budget, feedback
from executor.store.budget import BUDGET, level_of
from executor.store.database import Database
from executor.store.run import Progress, Run, RunState
from serving import served
from test_feedback import Desk, click, labelled, withdrawal

QUEUED, TRAINING, SUCCEEDED, FAILED, CANCELLED = list(RunState)[1:]
HOUR = 3600.0


class Shop(Desk):
    """A service with automatic runs, a clock that is set by hand, and no trainer."""

    def __init__(self, folder: Path, clock: list[float], max_open_runs: int = 100, **options: Any) -> None:
        super().__init__(folder, retrain=options, max_open_runs=max_open_runs)
        self.clock = clock
        self.compared: list[tuple[str, str, str, list[str], float]] = []
        self.worse: str | None = None
        self.meanwhile: Callable[[], object] = lambda: None  # while versions are compared
        self.served_by: Callable[[str], object] = self.store.promote
        self.said = 0
        self.retrainer = Retrainer(
            self.store,
            self.receiver.feedback,
            self.receiver,
            self.options,
            is_worse=self._is_worse,
            serve=self._serve,
        )

    def _is_worse(self, before: str, after: str, kind: str, docs: Any, chance: float) -> str | None:
        self.compared.append((before, after, kind, [doc.id for doc in docs], chance))
        self.meanwhile()
        return self.worse

    def _serve(self, version: str) -> None:
        self.served_by(version)

    def talk(self, count: int) -> None:
        self.say(*(labelled(f"d{self.said + n}", n % 2) for n in range(count)))
        self.said += count

    def runs(self) -> list[Run]:
        self.retrainer.look()
        return self.store.all()[::-1]

    def words(self) -> str:
        return self.retrainer.plan().words

    def conclude(self, run: str, *, better: bool | None, kind: str = "class") -> None:
        """Let a queued run have been trained and judged."""
        served = self.store.promoted()
        self.store.report(run, Progress(better=better, served=served, kind=kind))
        self.store.workspace.model_folder(run).mkdir(parents=True)
        self.store.advance(run, TRAINING)
        if better:
            self.store.promote(run)
        self.store.advance(run, SUCCEEDED)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1_800_000_000.0]
    for module in (feedback, budget, retraining):
        monkeypatch.setattr(module, "now", lambda: time[0])
    return time


@pytest.fixture
def open_shop(tmp_path: Path, clock: list[float]) -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def make(**options: Any) -> Shop:
        made.append(Shop(tmp_path / "workspace", clock, **options))
        return made[-1]

    yield make
    for shop in made:
        shop.close()


def test_a_run_starts_after_so_many_documents_and_the_next_after_as_many_more(open_shop):
    shop = open_shop(every_documents=4)
    shop.talk(3)
    assert shop.runs() == []
    assert shop.words() == "after 1 more new documents"
    shop.talk(1)
    (run,) = shop.runs()
    assert (run.state, run.train_rows, run.options.base, run.options.kind) == (QUEUED, 4, "base", "class")
    assert (run.configuration.automatic, run.configuration.level) == (1, level_of(1))
    shop.conclude(run.name, better=False)
    shop.talk(3)
    assert len(shop.runs()) == 1
    shop.talk(1)
    assert [each.train_rows for each in shop.runs()] == [4, 8]


def test_a_run_starts_by_the_hour_and_never_without_news(open_shop, clock):
    shop = open_shop(every_hours=2)
    assert shop.runs() == []
    shop.talk(2)
    clock[0] += 1.9 * HOUR
    assert shop.runs() == []
    clock[0] += 0.2 * HOUR
    (run,) = shop.runs()
    shop.conclude(run.name, better=False)
    clock[0] += 100 * HOUR
    assert len(shop.runs()) == 1
    assert shop.words() == "as soon as there is new feedback that suffices"
    shop.say(withdrawal("d0"))
    assert len(shop.runs()) == 2


def test_there_are_never_two_at_once_nor_one_beside_a_callers(open_shop):
    shop = open_shop(every_documents=2)
    shop.talk(2)
    shop.fit(labelled("mine"), run="mine", total=1)
    assert [run.name for run in shop.runs()] == ["mine"]
    assert "'mine' has ended" in shop.words()
    shop.end("mine")
    assert [run.name for run in shop.runs()] == ["mine", "auto-1"]
    shop.talk(5)
    assert len(shop.runs()) == 2
    assert "'auto-1' is under way" in shop.words()


def test_the_next_run_is_based_on_the_promoted_one_and_has_its_documents(open_shop):
    shop = open_shop(every_documents=2)
    shop.fit(labelled("a", 0), labelled("b", 1), run="first", total=2)
    shop.conclude("first", better=True)
    shop.talk(2)
    run = shop.runs()[-1]
    assert (run.options.base, run.options.documents_from) == ("first", ("first",))
    assert sorted(shop.ids(run.name)) == ["a", "b", "d0", "d1"]


@pytest.mark.parametrize(("sessions", "kind"), [(1, "class"), (4, "session")])
def test_without_a_promoted_run_the_sort_with_more_documents_is_trained_on(open_shop, sessions, kind):
    shop = open_shop(every_documents=2 + sessions)
    shop.say(*(click(f"q{n}", 1, -1) for n in range(sessions)))
    shop.talk(2)
    (run,) = shop.runs()
    assert run.options.kind == kind
    assert run.train_rows == max(2, sessions)
    assert shop.store.count_problems(run.name) == min(2, sessions)
    assert run.options.hard_negatives == (retraining.HARD_NEGATIVES if kind == "session" else 0)


@pytest.mark.parametrize("state", [FAILED, CANCELLED])
def test_after_a_failure_the_wait_doubles_each_time(open_shop, clock, state):
    shop = open_shop(every_documents=2, retry_minutes=30)
    shop.talk(2)
    for number, minutes in enumerate((30, 60, 120), start=1):
        run = shop.runs()[-1]
        assert run.name == f"auto-{number}"
        shop.end(run.name, state)
        assert len(shop.runs()) == number
        assert "because the last one failed" in shop.words()
        clock[0] += 60 * minutes - 5
        assert len(shop.runs()) == number
        clock[0] += 10
    assert len(shop.runs()) == 4
    assert retraining.wait_of(Retrain(every_documents=1), 1000) == 86_400


def test_a_run_that_cannot_begin_is_tried_again_later_and_says_why(open_shop, clock):
    shop = open_shop(every_documents=2, max_open_runs=3)
    shop.talk(2)
    for number in range(3):
        shop.fit(labelled(f"o{number}"), run=f"open{number}")
    assert len(shop.runs()) == 3
    assert "max_open_runs" in shop.words()


def test_the_budget_is_spent_only_by_runs_that_were_judged(open_shop, clock):
    shop = open_shop(every_documents=2, retry_minutes=1)
    outcomes: list[Any] = [False, None, FAILED, True, False]
    for outcome in outcomes:
        shop.talk(2)
        clock[0] += HOUR
        run = shop.runs()[-1]
        if outcome is FAILED:
            shop.end(run.name, FAILED)
            shop.runs()
        else:
            shop.conclude(run.name, better=outcome)
    assert [run.configuration.automatic for run in shop.runs()] == [1, 2, 2, 2, 3]
    assert shop.retrainer.spent == pytest.approx(level_of(1) + level_of(2) + level_of(3))
    assert any("started by itself, as number 1" in message for *_, message in shop.store.events("auto-1"))
    shop.receiver.delete("auto-1")
    assert shop.retrainer.spent == pytest.approx(level_of(1) + level_of(2) + level_of(3)), "a delete gives nothing back"


def test_the_levels_never_sum_up_to_more_than_the_budget():
    assert sum(map(level_of, range(1, 100_000))) < BUDGET
    assert sum(map(level_of, range(1, 100_000))) > 0.99 * BUDGET


def test_a_run_that_a_killed_service_did_not_note_is_in_the_ledger_after_all(open_shop, monkeypatch):
    shop = open_shop(every_documents=2)
    shop.talk(2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(budget.Budget, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            shop.runs()
    shop.close()
    again = open_shop(every_documents=2)
    assert len(again.runs()) == 1
    assert again.retrainer.spent == pytest.approx(level_of(1))


@pytest.mark.parametrize("step", ["documents", "take"])
def test_a_run_that_a_kill_left_without_its_documents_is_begun_anew_and_spends_once(open_shop, monkeypatch, step):
    shop = open_shop(every_documents=2)
    shop.talk(2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(feedback.FeedbackStore, step, killed)
        with pytest.raises(KeyboardInterrupt):
            shop.runs()
    shop.close()
    again = open_shop(every_documents=2)
    again.receiver.go_on()
    (run,) = again.runs()
    assert (run.name, run.state, run.train_rows, run.configuration.level) == ("auto-1", QUEUED, 2, level_of(1))
    assert again.retrainer.spent == pytest.approx(level_of(1))


def test_a_promotion_is_undone_when_later_feedback_proves_it_worse(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.talk(19)
    shop.runs()
    assert shop.compared == []
    shop.talk(1)
    shop.runs()
    shop.runs()
    ((before, after, kind, ids, chance),) = shop.compared
    assert (before, after, kind, len(ids), chance) == ("base", "auto-1", "class", 20, level_of(1))
    assert "d49" not in ids, "only what came after it"
    shop.worse = "It is worse."
    shop.talk(20)
    shop.runs()
    assert shop.compared[-1][-1] == level_of(2), "each look has a level of its own"
    assert shop.store.promoted() == "base"
    assert any(message == "'base' is served again. It is worse." for *_, message in shop.store.events("auto-1"))


def test_a_promotion_is_compared_on_the_newest_words_first(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.talk(19)
    shop.say(withdrawal("d60"))
    shop.talk(2)
    shop.runs()
    ((*_, ids, _),) = shop.compared
    assert ids == ["d70", "d69", *(f"d{n}" for n in range(68, 49, -1) if n != 60)]


def test_what_a_person_promoted_is_not_undone_nor_anything_if_the_option_says_no(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.store.promote("base")
    shop.talk(25)
    shop.runs()
    shop.store.promote("auto-1")
    shop.close()
    careless = open_shop(every_documents=50, rollback=False)
    careless.runs()
    assert shop.compared == careless.compared == []


def test_what_a_person_promoted_during_the_comparison_is_not_undone(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.receiver.receive(images(4), FitParameters(run="mine"))
    shop.receiver.queue("mine")
    shop.conclude("mine", better=None)
    shop.worse, shop.meanwhile = "It is worse.", lambda: shop.store.promote("mine")
    shop.talk(20)
    shop.runs()
    assert (len(shop.compared), shop.store.promoted()) == (1, "mine")


def promoted_over_a_run(shop: Shop) -> None:
    """`shop` is promoted, `auto-1` over it, and what came later proves that one worse."""
    shop.fit(labelled("a", 0), labelled("b", 1), run="shop", total=2)
    shop.conclude("shop", better=True)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.runs()
    shop.talk(20)
    shop.worse = "It is worse."


def another_of_that_name(shop: Shop, *, trained: bool) -> None:
    shop.receiver.delete("shop")
    shop.fit(labelled("c", 0), labelled("d", 1), run="shop", total=2)
    if trained:
        shop.conclude("shop", better=None)


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "of an older release"])
def test_a_promotion_over_a_run_is_undone_if_that_very_run_is_still_there(open_shop, is_noted):
    shop = open_shop(every_documents=50)
    promoted_over_a_run(shop)
    if not is_noted:
        forget_the_number(shop)
    shop.runs()
    assert shop.store.promoted() == "shop"


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "of an older release"])
@pytest.mark.parametrize("trained", [True, False])
def test_another_run_with_the_name_of_the_one_before_is_not_served_in_its_place(open_shop, trained, is_noted):
    shop = open_shop(every_documents=50)
    promoted_over_a_run(shop)
    if not is_noted:
        forget_the_number(shop)
    another_of_that_name(shop, trained=trained)
    shop.runs()
    assert (shop.compared, shop.store.promoted()) == ([], "auto-1")


def test_a_run_that_gets_the_name_of_the_one_before_during_the_comparison_is_not_served(open_shop):
    shop = open_shop(every_documents=50)
    promoted_over_a_run(shop)
    shop.meanwhile = lambda: another_of_that_name(shop, trained=True)
    shop.runs()
    assert (len(shop.compared), shop.store.promoted()) == (1, "auto-1")


def forget_the_number(shop: Shop) -> None:
    with shop.receiver.feedback.database.transaction() as db:
        db.execute("UPDATE automatic SET before_run = NULL")


def test_a_ledger_without_numbers_of_the_versions_before_is_brought_up_to_date(tmp_path: Path):
    older = Database(tmp_path / "feedback.sqlite", feedback.STEPS[:1])
    with older.transaction() as db:
        db.execute(
            "INSERT INTO automatic (run, name, level, began, outcome, before, looks) "
            "VALUES (7, 'auto-1', 0.015, 1.0, 'promoted', 'shop', 2)"
        )
    older.close()
    kept = feedback.FeedbackStore(tmp_path / "feedback.sqlite")
    (attempt,) = budget.Budget(kept).attempts()
    assert (attempt.run, attempt.before, attempt.looks, attempt.before_run) == (7, "shop", 2, None)
    assert attempt.begun == 0
    kept.close()


def broken() -> None:
    raise OSError("the disk is gone")


def test_a_comparison_that_fails_is_made_again_after_pauses_with_the_level_that_it_had(open_shop, clock, caplog):
    shop = open_shop(every_documents=50, retry_minutes=30)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.worse, shop.meanwhile = "It is worse.", broken
    shop.talk(20)
    for count, minutes in enumerate((30, 60), start=1):
        for _ in range(3):  # it is looked after each second
            shop.runs()
        assert (len(shop.compared), len(caplog.records)) == (count, count)
        assert "tried again after" in caplog.text
        assert "the disk is gone" in caplog.text
        clock[0] += 60 * minutes - 5
        shop.runs()
        assert len(shop.compared) == count
        clock[0] += 10
    shop.meanwhile = lambda: None
    shop.runs()
    assert ([each[-1] for each in shop.compared], shop.store.promoted()) == ([level_of(1)] * 3, "base")


def test_a_version_that_cannot_be_served_again_at_once_is_served_later(open_shop, clock):
    shop = open_shop(every_documents=50, retry_minutes=30)
    promoted_over_a_run(shop)
    shop.served_by = lambda version: broken()
    shop.runs()
    assert shop.store.promoted() == "auto-1"
    shop.served_by = shop.store.promote
    clock[0] += 1801
    shop.runs()
    assert shop.store.promoted() == "shop"


def test_a_comparison_that_an_end_breaks_off_is_made_again(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=True)
    shop.worse, shop.meanwhile = "It is worse.", shop.retrainer.stop
    shop.talk(20)
    shop.runs()
    assert (len(shop.compared), shop.store.promoted()) == (1, "auto-1")
    shop.close()
    again = open_shop(every_documents=50)
    again.worse = "It is worse."
    again.runs()
    assert ([each[-1] for each in again.compared], again.store.promoted()) == ([level_of(1)], "base")


class Killed(BaseException):
    """The process is gone."""


def killed() -> None:
    raise Killed


def test_a_comparison_that_a_kill_breaks_off_is_made_again_with_the_level_that_it_had(open_shop):
    shop = open_shop(every_documents=50)
    promoted_over_a_run(shop)
    shop.meanwhile = killed
    with pytest.raises(Killed):
        shop.runs()
    shop.close()
    again = open_shop(every_documents=50)
    again.worse = "It is worse."
    again.runs()
    assert [each[-1] for each in (*shop.compared, *again.compared)] == [level_of(1)] * 2
    assert again.store.promoted() == "shop"


def test_a_comparison_that_kills_its_service_again_and_again_waits_for_more_feedback(open_shop, caplog):
    shop = open_shop(every_documents=50)
    promoted_over_a_run(shop)
    levels = []
    for _ in range(retraining.MOST_KILLED):
        shop.meanwhile = killed
        with pytest.raises(Killed):
            shop.runs()
        levels += [each[-1] for each in shop.compared]
        shop.close()
        shop = open_shop(every_documents=50)
    assert levels == [level_of(1)] * retraining.MOST_KILLED
    shop.said = 70
    shop.runs()
    shop.talk(19)
    shop.runs()
    assert shop.compared == []
    assert f"was killed {retraining.MOST_KILLED} times while it compared them" in caplog.text
    shop.talk(1)
    shop.runs()
    assert [each[-1] for each in shop.compared] == [level_of(2)]


def test_a_run_that_a_person_promoted_later_was_not_promoted_by_itself_also_if_its_end_is_noted_after_that(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.conclude(shop.runs()[-1].name, better=False)
    shop.store.promote("auto-1")
    shop.worse = "It is worse."
    shop.talk(20)
    shop.runs()
    assert (shop.compared, shop.store.promoted()) == ([], "auto-1")


def test_a_service_that_ends_serves_and_begins_nothing_more(open_shop):
    shop = open_shop(every_documents=50)
    shop.talk(50)
    shop.retrainer.stop()
    assert shop.runs() == []


@pytest.mark.flow
def test_a_service_starts_a_run_by_itself_and_says_so(tmp_path: Path):
    fit_defaults = {"epochs": 1, "batch_size": 16}
    with served(tmp_path, retrain={"every_documents": 48}, fit_defaults=fit_defaults) as service:
        (answer,) = service.post("/feedback", images(40), returns=FeedbackStatus)
        assert answer.next_run == "after 8 more new documents"
        service.post("/feedback", images(8, prefix="more"), returns=FeedbackStatus)
        deadline = time.monotonic() + 60
        while not (runs := service.post("/status", returns=RunStatus)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        status = service.wait(runs[0].run)
        assert (status.run, status.state, status.error) == ("auto-1", "succeeded", None)
        assert (status.automatic, status.level) == (1, pytest.approx(level_of(1)))
        assert status.sources == {"feedback": 48.0}
        assert f"{100 * (1 - 2 * level_of(1)):.5g} % interval" in status.verdict
        (answer,) = service.post("/feedback", returns=FeedbackStatus)
        assert "an automatic run is judged by 20 queries or more, not 16, and spends nothing" in status.verdict
        deadline = time.monotonic() + 60
        while answer.budget_spent:  # what was reserved for the run is given back when its end is noted
            assert (answer.budget_spent, time.monotonic() < deadline) == (pytest.approx(level_of(1)), True)
            (answer,) = service.post("/feedback", returns=FeedbackStatus)
        assert (answer.since_last_run, answer.last_run) == (0, "auto-1")
