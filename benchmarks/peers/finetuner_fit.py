"""Train with `finetuner.fit`, the local tuner. The driver runs `python -m benchmarks.peers.finetuner_fit TASK`.

Documents name their files by `uri`, and `preprocess_fn` loads them as in finetuner's own guide. The class sampler, the
triplet loss with its miner, and Adam are finetuner's defaults.
"""

import finetuner
import numpy as np
from docarray import Document, DocumentArray
from finetuner.tuner.callback import BaseCallback
from finetuner.tuner.pytorch.losses import TripletLoss

from benchmarks.peers.plain_loop import make_step
from benchmarks.peers.task import Clock, Task, train_and_hand_back
from executor.models.model import EmbeddingModel


class Timed(BaseCallback):
    """Tells the clock about steps and epochs. All of finetuner's batches are full."""

    def __init__(self, clock: Clock, batch: int) -> None:
        self._clock = clock
        self._batch = batch

    def on_train_batch_end(self, tuner: object) -> None:
        """A step has ended."""
        self._clock.step(self._batch)

    def on_epoch_end(self, tuner: object) -> None:
        """An epoch has ended."""
        self._clock.end_epoch()


class Loaded:
    """The `preprocess_fn`. It is a class because worker processes must be able to unpickle it."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, doc: Document) -> np.ndarray:
        """Return the image as (3, size, size) float32."""
        doc.load_uri_to_image_tensor(self._size, self._size)
        return doc.set_image_tensor_normalization().set_image_tensor_channel_axis(-1, 0).tensor


def main() -> None:
    """Train and print."""
    task = Task.given()

    def train(network: EmbeddingModel, clock: Clock) -> None:
        finetuner.fit(
            network,
            DocumentArray(Document(uri=path, tags={"finetuner_label": label}) for path, label in task.files),
            epochs=task.epochs,
            batch_size=task.batch,
            loss="TripletLoss",
            learning_rate=task.learning_rate,
            preprocess_fn=Loaded(task.size),
            num_items_per_class=task.items_per_class,
            callbacks=[Timed(clock, task.batch)],
            num_workers=task.workers,
        )

    version = f"finetuner {finetuner.__version__}"
    train_and_hand_back(task, version, lambda network: make_step(network, TripletLoss(), task.learning_rate), train)


if __name__ == "__main__":
    main()
