"""Train on photographs with sentence-transformers' trainer, by its guide for data with labels.

`BatchAllTripletLoss` on batches that are grouped by label, AdamW with the trainer's default rate of 5e-5, a linear
warm-up over a tenth of the steps, then a linear fall; gradients are scaled down to norm 1. The loss's default margin of
5 is meant for embeddings of any length. Ours have unit length, so it is 0.2, of the cosine distance.

The trainer's samples are texts: here the numbers of the photographs.
"""

import tempfile
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers.base.modules import InputModule
from torch import Tensor

from benchmarks.peers.photos_task import PhotosTask
from executor.models.model import EmbeddingModel

MARGIN = 0.2
LEARNING_RATE = 5e-5
WARMUP = 0.1


class NumberedPhotographs(InputModule):
    """Embeds photographs of the task, whose numbers are its inputs."""

    def __init__(self, task: PhotosTask, network: EmbeddingModel) -> None:
        super().__init__()
        self.task = task
        self.network = network

    @property
    def modalities(self) -> list[str]:
        """Return the kinds of input; a number is a text."""
        return ["text"]

    def train(self, mode: bool = True) -> "NumberedPhotographs":
        """The trainer sets training mode before each step; norms that are fixed stay so."""
        super().train(mode)
        if mode:
            self.task.set_training(self.network)
        return self

    def preprocess(self, inputs: Sequence[str], prompt: str | None = None, **_: Any) -> dict[str, Tensor]:
        """Return the augmented photographs, (B, 3, S, S) float32."""
        return {"pixel_values": self.task.inputs(self.network, [int(number) for number in inputs])}

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Add the embeddings."""
        return features | {"sentence_embedding": self.network(features["pixel_values"])}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: we save the network ourselves."""


def main() -> None:
    """Train the network of the task."""
    task = PhotosTask.given()
    chosen = task.settings
    network = task.network()
    model = SentenceTransformer(modules=[NumberedPhotographs(task, network)], device="cpu")
    numbers = [str(number) for number in range(len(task.labels))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=chosen.steps,
            per_device_train_batch_size=chosen.batch,
            learning_rate=LEARNING_RATE,
            warmup_steps=round(WARMUP * chosen.steps),
            batch_sampler="group_by_label",
            dataloader_drop_last=len(task.labels) >= 2 * chosen.batch,
            seed=chosen.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"photograph": numbers, "label": task.labels.tolist()}),
            loss=losses.BatchAllTripletLoss(
                model,
                distance_metric=losses.BatchHardTripletLossDistanceFunction.cosine_distance,
                margin=MARGIN,
            ),
            optimizers=task.our_optimizer(network) if chosen.as_ours else (None, None),
        ).train()
    task.hand_back(network)


if __name__ == "__main__":
    main()
