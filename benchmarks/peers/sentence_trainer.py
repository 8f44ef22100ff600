"""Train with sentence-transformers. The driver runs `python -m benchmarks.peers.sentence_trainer TASK`.

It uses their trainer, triplet loss and sampler by label, and an input module around our network. The collator turns
paths into pixels by Pillow, in the processes of the DataLoader.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import sentence_transformers
import torch
from datasets import Dataset
from PIL import Image
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.base.modules import InputModule
from torch import Tensor
from transformers import TrainerCallback

from benchmarks.peers.plain_loop import Step, make_step
from benchmarks.peers.task import Clock, Task, train_and_hand_back
from executor.models.model import EmbeddingModel

MARGIN = 0.2


class ImagePaths(InputModule):
    """Embeds image files; its inputs are their paths."""

    def __init__(self, network: EmbeddingModel) -> None:
        super().__init__()
        self.network = network

    @property
    def modalities(self) -> list[str]:
        """Return the kinds of input; a path is a text."""
        return ["text"]

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Return the files as normalised (B, 3, size, size) float32."""
        preprocessing = self.network.preprocessing
        size = preprocessing.size, preprocessing.size
        images = [Image.open(path).convert("RGB").resize(size, Image.Resampling.BILINEAR) for path in inputs]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
        return {"pixel_values": (pixels - mean) / std}

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add the embeddings."""
        return features | {"sentence_embedding": self.network(features["pixel_values"])}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: we save the network ourselves."""


class Timed(TrainerCallback):
    """Tells the clock about steps and epochs. All batches are full, because an incomplete last one is dropped."""

    def __init__(self, clock: Clock, batch: int) -> None:
        self._clock = clock
        self._batch = batch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self._clock.step(self._batch)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """An epoch has ended."""
        self._clock.end_epoch()


def main() -> None:
    """Train and print."""
    task = Task.given()

    def step_of(network: EmbeddingModel) -> Step:
        loss = losses.BatchSemiHardTripletLoss(SentenceTransformer(modules=[ImagePaths(network)]), margin=MARGIN)
        return make_step(network, lambda *batch: loss.compute_loss_from_embeddings([batch[0]], batch[1]), 1e-3)

    def train(network: EmbeddingModel, clock: Clock) -> None:
        model = SentenceTransformer(modules=[ImagePaths(network)], device="cpu")
        files = Dataset.from_dict({"image": [path for path, _ in task.files], "label": task.labels})
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(
                output_dir=folder,
                num_train_epochs=task.epochs,
                per_device_train_batch_size=task.batch,
                learning_rate=task.learning_rate,
                batch_sampler="group_by_label",
                dataloader_drop_last=True,
                dataloader_num_workers=task.workers,
                dataloader_persistent_workers=task.workers > 0,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            SentenceTransformerTrainer(
                model=model,
                args=arguments,
                train_dataset=files,
                loss=losses.BatchSemiHardTripletLoss(model, margin=MARGIN),
                callbacks=[Timed(clock, task.batch)],
            ).train()

    train_and_hand_back(task, f"sentence-transformers {sentence_transformers.__version__}", step_of, train)


if __name__ == "__main__":
    main()
