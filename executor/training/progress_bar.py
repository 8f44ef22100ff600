"""Show the progress of a training on the terminal."""

import logging

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..evaluation.eval_set import Measured
from .features import Filling
from .loop import Meter, Step
from .watching import Watcher

_log = logging.getLogger(__name__)


class ProgressBar(Watcher):
    """Shows the epoch, loss, images per second and time left. If it is not visible, messages go to the log."""

    def __init__(self, *, visible: bool) -> None:
        self._meter = Meter()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]} images/s  {task.fields[left]} left"),
            console=Console(stderr=True),
            disable=not visible,
        )
        self._task = self._bar.add_task("", total=None, epoch=0, epochs="–", loss="–", speed="–", left="–")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence above the bar, or log it if the bar is not visible."""
        if self._bar.disable:
            _log.warning(sentence)
        else:
            self._bar.console.print(sentence, highlight=False)

    def begin(self, before: Measured | None, epochs: int, steps: int) -> None:
        """Start measuring the speed and the time left."""
        self._meter = Meter()
        self._bar.update(self._task, epochs=epochs)

    def filled(self, filling: Filling) -> None:
        """Show how many features of a frozen backbone are computed."""
        self._bar.update(self._task, total=filling.total, completed=filling.done)
        if filling.done == filling.total and not self._bar.disable:
            self.say(str(filling))

    def trying(self, number: int, count: int, images_per_second: float) -> None:
        """Show how many settings have been tried."""
        self._bar.update(self._task, total=count, completed=number - 1, speed=f"{images_per_second:.0f}")

    def tried(self, sentence: str) -> None:
        """Print how a setting did."""
        if not self._bar.disable:
            self.say(sentence)

    def stepped(self, step: Step) -> None:
        """Show a finished step."""
        speed, left = self._meter.update(step)
        self._bar.update(
            self._task,
            total=step.total,
            completed=step.done,
            epoch=step.epoch + 1,
            loss=f"{step.loss:.4f}",
            speed=f"{speed:.0f}",
            left=f"{int(left) // 60}:{int(left) % 60:02d}",
        )
