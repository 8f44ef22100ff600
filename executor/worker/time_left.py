"""How long a run takes after its last step: its model is measured, its labels are looked at, its report is written."""

from ..loading.datasets import ClassDataset
from ..training.recipe import Task
from .label_check import MOST as MOST_CHECKED

WRITING_SECONDS = 1.0  # the model, and the report
CHEAPER = 3.0  # images that are only embedded, in the time of one that is trained on


class TimeLeft:
    """Estimates that time, by the first evaluation of the run; without one by the speed of its training.

    Args: evaluations: how many are to come after the last step.
    """

    def __init__(self, task: Task, *, evaluations: int) -> None:
        self._measured = 0 if task.eval_set is None else len(task.eval_set.items)
        looked_at = len(task.items) + self._measured if isinstance(task.dataset, ClassDataset) else 0
        self._embedded = self._measured * evaluations + 2 * min(looked_at, MOST_CHECKED)
        self._seconds: float | None = None  # for an image

    def evaluated(self, seconds: float) -> None:
        """Note how long the first evaluation has taken."""
        if self._measured and self._seconds is None:
            self._seconds = seconds / self._measured

    def after_steps(self, images_per_second: float = 0.0) -> float:
        """Return the seconds. Args: images_per_second: of the training, so far."""
        seconds = self._seconds
        if seconds is None:
            seconds = 1 / (CHEAPER * images_per_second) if images_per_second else 0.0
        return WRITING_SECONDS + self._embedded * seconds
