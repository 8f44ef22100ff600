"""The history of a run for TensorBoard, where the operator wants it (option `tensorboard`, extra `tracking`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


class Tracker:
    """Writes scalars into `folder/run`, an entry for each epoch. A write that fails does not end the run.

    Args: folder: None: nothing is written. warn: told once why nothing can be written.
    """

    def __init__(self, folder: str | None, run: str, warn: Callable[[str], None]) -> None:
        self._place = None if folder is None else Path(folder) / run
        self._warn = warn
        self._writer: Any = None
        self._written: dict[str, int] = {}

    def epochs(self, history: dict[str, list[float]]) -> None:
        """Write the epochs that are new. Args: history: one list per measured value, one entry per epoch."""
        for name, series in history.items():
            for epoch in range(self._written.get(name, 0), len(series)):
                self._write(f"history/{name}", series[epoch], epoch + 1)
            self._written[name] = len(series)

    def end(self, metrics: dict[str, float]) -> None:
        """Write the metrics of the eval set, after the last epoch, and close the file."""
        last = max(self._written.values(), default=0)
        for name, value in metrics.items():
            self._write(name, value, last)
        if self._writer is not None:
            self._writer.close()

    def _write(self, name: str, value: float, epoch: int) -> None:
        if self._place is None:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # A trainer that goes on writes all epochs again; TensorBoard drops what an earlier one wrote of them.
                self._writer = SummaryWriter(str(self._place), purge_step=1)
            self._writer.add_scalar(name, value, epoch)
        except (ImportError, OSError) as error:
            self._warn(f"The history is not written for TensorBoard to {self._place}: {error}")
            self._place = None
