"""Train with the trainer of the service on the peers' task. The driver runs `python -m benchmarks.peers.ours TASK`.

Like the peers, it has a triplet loss and no augmentation. As in `benchmarks.train`, the first epoch includes everything
before it; every image is decoded before the first step.
"""

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.peers.plain_loop import Step
from benchmarks.peers.task import Result, Task
from benchmarks.train import TimedTrainer, prepare_run
from executor.models.saving import load_model, save_model
from executor.training.config import TrainConfig
from executor.training.losses import build_loss
from executor.training.optimizer import parameter_groups


def make_step(task: Task) -> Step:
    """Return the step of our loop, in the task's precision, on its own copy of the network."""
    model = load_model(Path(task.network)).train()
    loss = build_loss("triplet", "class", num_classes=len(set(task.labels)), embedding_size=model.dim)
    optimizer = torch.optim.AdamW(parameter_groups(model, loss, TrainConfig()))

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16"):
            embeddings = model(images.contiguous(memory_format=torch.channels_last))
        value = loss(embeddings.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def main() -> None:
    """Train and print."""
    task = Task.given()
    trial = make_step(task)
    limits = [task.limit(trial)]
    result = Path(task.result)
    name = f"run-{result.name}"
    store = prepare_run(
        result.parent,
        name,
        task.files,
        task.size,
        augment="none",
        epochs=task.epochs,
        num_items_per_class=task.items_per_class,
        learning_rate=task.learning_rate,
        loss="triplet",
        precision=task.precision,
    )
    trainer = TimedTrainer(store, name, between=lambda: None)
    trainer.run()
    limits.append(task.limit(trial))
    save_model(load_model(store.workspace.model_folder(name)), result)
    steps = store.progress(name).step
    images = [task.batch * steps // task.epochs] * task.epochs
    Result("this project", steps, images, trainer.epochs, limits).hand_back()


if __name__ == "__main__":
    main()
