"""How many items of a batch are in memory at a time. A file keeps the number, so that a resumed run does the same."""

from collections.abc import Callable
from pathlib import Path

from ..errors import OutOfMemory
from ..store.files import publish_file

TOO_LITTLE_MEMORY = "There was too little memory"


class MicroBatch:
    """How many items of a batch are in memory at a time. When memory runs out, the number is halved from that step on.

    The file has a line `step items` for each halving, so that a resumed run computes each step as before.

    Args:
        asked: items at a time; None: the whole batch. whole: the size of a batch, for calls of `halve` without `items`.
        file: keeps the halvings; None: they are not kept.
        say: called with a sentence at each halving.
    """

    def __init__(
        self,
        asked: int | None,
        whole: int | None = None,
        *,
        file: Path | None = None,
        say: Callable[[str], None] = lambda note: None,
    ) -> None:
        self._asked = asked
        self._whole = whole
        self._file = file
        self._say = say
        self._halvings: list[tuple[int, int]] = []
        self.reload()

    def reload(self) -> None:
        """Read the file again, if there is one."""
        if self._file is not None and self._file.exists():
            numbers = [line.split() for line in self._file.read_text().splitlines()]
            known = [each for each in numbers if len(each) == 2 and all(number.isdecimal() for number in each)]
            self._halvings = [(int(step), int(items)) for step, items in known]  # what was spoilt is found out again

    def at(self, step: int) -> int | None:
        """Return the items in memory at a time after `step` steps; None: the whole batch, of any size."""
        limits = [items for first, items in self._halvings if first <= step]
        return min([*limits, *([self._asked] if self._asked else [])], default=None)

    def halve(self, step: int, items: int | None = None) -> None:
        """Halve the number: after `step` steps memory was too small for `items` (by default the number of `at`).

        Raises: OutOfMemory: the number was 1 already.
        """
        tried = min(number for number in (items, self.at(step), self._whole) if number is not None)
        if tried == 1:
            raise OutOfMemory(
                "There is too little memory to train on even 1 image at a time; lower input_size, choose a smaller "
                "model, or give the trainer more memory."
            )
        self._halvings.append((step, tried // 2))
        if self._file is not None:
            publish_file(self._file, "".join(f"{first} {number}\n" for first, number in self._halvings).encode())
        self._say(
            f"{TOO_LITTLE_MEMORY} for {tried} images at a time: from step {step} on a batch is computed in "
            f"parts of {tried // 2}. It is compared as a whole still; batch norm sees the parts."
        )
