"""The history of a run for TensorBoard, read back by TensorBoard itself. It has packages beside the pinned ones."""

import importlib.util
import json
from pathlib import Path

import pytest

from executor.errors import ConfigurationError
from executor.parameters import parse_executor_options
from executor.worker.tracking import Tracker
from extras import run_with_extras

HISTORY = {"loss": [3.0, 2.0, 1.5], "recall_at_1": [0.25, 0.5, 0.75]}
WRITE = """
import json, sys
from executor.worker.tracking import Tracker

folder, epochs, history = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
tracker = Tracker(folder, "shop", print)
for epoch in range(1, epochs + 1):
    tracker.epochs({name: series[:epoch] for name, series in history.items()})
tracker.end({"tuned/recall_at_1": 0.75})
"""
READ = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

events = EventAccumulator(sys.argv[1])
events.Reload()
found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
print(json.dumps({tag: [(each.step, round(each.value, 4)) for each in series] for tag, series in found.items()}))
"""


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(None, "shop", pytest.fail)
    tracker.epochs(HISTORY)
    tracker.end({})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is not None, reason="here it is installed")
def test_without_the_package_the_option_is_refused_at_the_start_and_a_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"pip install 'finetuner-executor\[tracking\]'"):
        parse_executor_options({"tensorboard": str(tmp_path)})
    said: list[str] = []
    tracker = Tracker(str(tmp_path), "shop", said.append)  # it was uninstalled since
    tracker.epochs(HISTORY)
    tracker.end({})
    assert len(said) == 1
    assert said[0].startswith(f"The history is not written for TensorBoard to {tmp_path / 'shop'}: ")


@pytest.mark.extra
@pytest.mark.process
def test_tensorboard_reads_each_epoch_once_also_after_a_resumption(tmp_path: Path) -> None:
    for epochs in (2, 3):  # a trainer that is interrupted, and one that goes on with what it had
        run_with_extras(WRITE, tmp_path, epochs, json.dumps(HISTORY))
    found = json.loads(run_with_extras(READ, tmp_path / "shop"))
    assert found["history/loss"] == [[1, 3.0], [2, 2.0], [3, 1.5]]
    assert found["history/recall_at_1"] == [[1, 0.25], [2, 0.5], [3, 0.75]]
    assert found["tuned/recall_at_1"][-1] == [3, 0.75]
