"""The calls by which a training reports its progress to the service's trainer, or to the progress bar of `fit()`."""

from ..evaluation.eval_set import Measured
from .features import Filling
from .loop import Step


class Watcher:
    """Gets the reports of a training and ignores them. A method may raise an exception to end the training."""

    def say(self, sentence: str) -> None:
        """A person should know this, for example that an option has no effect or the disk is full."""

    def evaluating(self) -> None:
        """A model is being measured."""

    def begin(self, before: Measured | None, epochs: int, steps: int) -> None:
        """The first step comes next. Args: before: scores of the base on the eval set. steps: number in all epochs."""

    def filled(self, filling: Filling) -> None:
        """Some more features of a frozen backbone are computed."""

    def trying(self, number: int, count: int, images_per_second: float) -> None:
        """A step of a short run is done, for trial `number` of `count`; it is none of the run's own steps."""

    def tried(self, sentence: str) -> None:
        """A setting has been tried, or one of them is chosen. Args: sentence: says which, and how it did."""

    def stepped(self, step: Step) -> None:
        """A step is done."""

    def ended(self, history: dict[str, list[float]]) -> None:
        """The last step is done, and the tuned model is about to be measured."""

    def lost(self, sentence: str) -> None:
        """The loss or its gradient is no longer finite. Args: sentence: names all documents of the batch."""
