"""What a run shows of itself: it never goes back, and the time left is what is really left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from conftest import images
from executor import ClassDataset
from executor.compute.ranks import ALONE
from executor.store.run import Progress
from executor.store.runs import RunStore
from executor.store.workspace import Workspace
from executor.worker import progress as reporting
from executor.worker.progress import LEAST_LEFT, ProgressWriter
from executor.worker.time_left import WRITING_SECONDS, TimeLeft


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(Workspace(tmp_path / "workspace"))
    store.create("a")
    store.workspace.run_folder("a").mkdir(parents=True)
    return store


def writer(store: RunStore) -> ProgressWriter:
    return ProgressWriter(store, store.get("a"), ALONE)


def test_what_a_resumed_run_shows_never_goes_back(store: RunStore) -> None:
    history = {"loss": [0.5, 0.4]}
    writer(store).report(phase="training", step=57, steps=90, epoch=3, epochs=5, history=history, eta_seconds=3.0)
    again = writer(store)
    again.report(error=None)
    shown = store.progress("a")
    assert (shown.phase, shown.step, shown.steps, shown.epoch, shown.history) == ("starting", 57, 90, 3, history)
    assert shown.eta_seconds is None  # of the earlier attempt
    again.report(phase="training", step=41, epoch=2, history={"loss": [0.5]}, eta_seconds=9.0)
    shown = store.progress("a")
    assert (shown.step, shown.epoch, shown.history, shown.eta_seconds) == (57, 3, history, 9.0)
    again.report(step=58, history={"loss": [0.5, 0.4, 0.3]})
    assert (store.progress("a").step, len(store.progress("a").history["loss"])) == (58, 3)


def test_a_resumed_run_shows_the_measures_of_an_epoch_whose_loss_alone_was_shown_before_a_kill(store: RunStore) -> None:
    measures = {"loss": [0.5, 0.4], "map_at_r": [0.6, 0.7]}
    writer(store).report(phase="evaluating", history={**measures, "map_at_r": [0.6]})
    again = writer(store)
    again.report(phase="training", history={"loss": [0.5], "map_at_r": [0.6]})
    assert store.progress("a").history["loss"] == [0.5, 0.4]
    again.report(phase="evaluating", history=measures)
    assert store.progress("a").history == measures


def test_the_time_left_counts_down_and_is_never_nothing_while_a_run_goes_on(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=1000.0)
    monkeypatch.setattr(reporting, "time", clock)
    told = writer(store)
    told.expect_end(30.0)
    shown = []
    for _ in range(4):
        told.report(phase="evaluating")
        shown.append(store.progress("a").eta_seconds)
        clock.now += 12.0
    assert shown == [30.0, 18.0, 6.0, LEAST_LEFT]


def task(trained: int, proving: int, *, labelled: bool = True) -> Any:
    dataset = ClassDataset(images(4)) if labelled else None
    eval_set = SimpleNamespace(items=np.arange(proving)) if proving else None
    return SimpleNamespace(dataset=dataset, items=np.arange(trained), eval_set=eval_set)


@pytest.mark.parametrize(
    ("of", "evaluations", "images_embedded"),
    [
        (task(80, 20), 1, 20 + 2 * 100),  # the tuned model; and both models on all labelled documents
        (task(80, 20), 2, 40 + 2 * 100),  # the served model too
        (task(80, 20, labelled=False), 1, 20),
        (task(10**6, 20), 1, 20 + 2 * 20_000),
        (task(80, 0), 1, 2 * 80),
    ],
)
def test_what_comes_after_the_last_step_is_counted_by_the_images_that_are_embedded(
    of: Any, evaluations: int, images_embedded: int
) -> None:
    left = TimeLeft(of, evaluations=evaluations)
    assert left.after_steps() == WRITING_SECONDS
    assert left.after_steps(50.0) == pytest.approx(WRITING_SECONDS + images_embedded / 150)
    left.evaluated(4.0)  # seconds for the eval set
    left.evaluated(400.0)  # with short runs before: it says nothing
    expected = images_embedded * 4 / 20 if of.eval_set else images_embedded / 150
    assert left.after_steps(50.0) == pytest.approx(WRITING_SECONDS + expected)


def test_a_report_is_a_sign_of_life_and_a_beat_needs_no_report(store: RunStore) -> None:
    told, file = writer(store), store.workspace.beat_file("a")
    assert not file.exists()
    told.beat()
    assert file.stat().st_size == 0
    file.unlink()
    writer(store).report(phase="loading")
    assert file.exists()
    assert store.progress("a") == Progress(phase="loading")
