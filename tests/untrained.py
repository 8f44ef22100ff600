"""Runs in the workspace of a service that have succeeded at once, with a model each: nothing is trained."""

import torch

from conftest import images
from executor import DocumentArray
from executor.endpoints.service import Service
from executor.models.saving import load_model, save_model
from executor.parameters import FitParameters
from executor.store.run import RunState


def add_blind_run(service: Service, name: str, proof: DocumentArray) -> None:
    """Add a run whose model sees nothing: all pictures are alike to it. Its supervisor must be closed.

    Args: proof: the eval documents, of which the first one gets a wrong label.
    """
    if proof[0].tags:
        proof[0].tags["finetuner_label"] = 1
    service.receiver.receive(images(8, prefix="taught", first_seed=500), FitParameters(run=name))
    service.receiver.receive(proof, FitParameters(run=name, split="eval"))
    add_version(service, name, blind=True)


def add_version(service: Service, name: str, *, blind: bool = False) -> None:
    """Let a run that receives documents succeed, with the model of `base`, or one that sees nothing."""
    service.receiver.queue(name)
    for state in (RunState.TRAINING, RunState.SUCCEEDED):
        service.store.advance(name, state)
    service.embedder.version("base")  # which builds it
    model = load_model(service.store.workspace.base)
    if blind:
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                parameter.fill_(1.0 if part.endswith("bias") else 0.0)
    save_model(model, service.store.workspace.model_folder(name))
