"""Our form of AdamW steps exactly as torch's, and without its compiler."""

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from executor.training.optimizer import PlainAdamW
from serving import ROOT

pytestmark = pytest.mark.compute


def trained(kind: type[torch.optim.AdamW], *, again_from: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Make three steps; return the weights and the optimizer's state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    groups = [{"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.3}, {"params": model[2].parameters()}]
    optimizer = kind(groups, lr=0.01, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    if again_from is not None:
        optimizer.load_state_dict(copy.deepcopy(again_from))
    for seed in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizer.step()
        schedule.step()
    return [parameter.detach() for parameter in model.parameters()], optimizer.state_dict()


@pytest.mark.parametrize("resumed", [False, True])
def test_it_makes_the_same_steps_and_keeps_the_same_state(resumed: bool) -> None:
    _, state = trained(torch.optim.AdamW)
    (weights, ours), (expected, theirs) = (
        trained(kind, again_from=state if resumed else None) for kind in (PlainAdamW, torch.optim.AdamW)
    )
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


PROGRAM = """
import sys, torch
from executor.training.gradients import compute_gradients
from executor.training.losses import build_loss
from executor.training.optimizer import PlainAdamW

model, labels = torch.nn.Linear(3, 2), torch.tensor([0, 0, 1, 1])
before = model.weight.detach().clone()
optimizer = PlainAdamW(model.parameters())
optimizer.zero_grad()
loss = build_loss("auto", "class", num_classes=2, embedding_size=2)
for items in (None, 2):
    compute_gradients(
        model, loss, torch.randn(4, 3), labels, device=torch.device("cpu"), bf16=False, micro_batch=items
    )
    optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
print(bool((model.weight != before).any()), "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""


@pytest.mark.process
def test_a_step_imports_neither_the_compiler_nor_sympy() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False"]
