"""What a training tells whoever watches it: the service's trainer, or the progress bar of `fit()`."""

from ..evaluation.eval_set import Measured
from .features import Filling
from .loop import Step


class Watcher:
    """Is told how a training goes on; does nothing with it. Each method may raise what shall end the training."""

    def say(self, sentence: str) -> None:
        """Something that a person should know: an option that could not be had, a disk that is full."""

    def evaluating(self) -> None:
        """A model is being measured."""

    def begin(self, before: Measured | None, steps: int) -> None:
        """The first step is near. Args: before: the base on the eval set. steps: of all epochs."""

    def filled(self, filling: Filling) -> None:
        """How far the features of a frozen backbone are."""

    def stepped(self, step: Step) -> None:
        """A step is done."""

    def ended(self, history: dict[str, list[float]]) -> None:
        """The last step is done, and the tuned model is about to be measured."""

    def lost(self, sentence: str) -> None:
        """The loss is no number any more. Args: sentence: names all documents of the batch."""
