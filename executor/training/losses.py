"""Losses by name, for each kind of data. They come from pytorch-metric-learning; we give them the right pairs.

Every loss maps (embeddings (B, D) float32, labels) to a scalar. Labels are (B,) int64 for class and unlabeled data,
and (B, 2) int64, `(session, 0 | 1 | -1)`, for sessions.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidParameter
from .imports import not_importing

# It imports scipy.stats, a sixth of the time of a trainer's imports, for one function that losses do not call.
with not_importing("scipy.stats"):
    from pytorch_metric_learning import losses, miners

LossFactory = type[nn.Module]


class ProxyAnchorSupCon(nn.Module):
    """ProxyAnchor plus `supcon_weight` times SupCon: the first compares items with classes, the second with each other.

    Each of them is the best loss on some image sets and worse on others. Together they are close to the best on all
    sets that we tried (docs/training.md). Kim et al. 2020, arXiv:2003.13911; Khosla et al. 2020, arXiv:2004.11362.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32,
        temperature: float = 0.1,
        supcon_weight: float = 5.0,
    ) -> None:
        super().__init__()
        proxy_anchor = losses.ProxyAnchorLoss(num_classes, embedding_size, margin=margin, alpha=alpha)
        supcon = losses.SupConLoss(temperature=temperature)
        self.both = losses.MultipleLosses([proxy_anchor, supcon], weights=[1.0, supcon_weight])

    def forward(self, embeddings: Tensor, labels: Tensor, pairs: None = None) -> Tensor:
        value: Tensor = self.both(embeddings, labels)
        return value


# The proxy losses learn one vector per class; the others compare the items of a batch.
PROXY_LOSSES: dict[str, LossFactory] = {
    "proxy_anchor_supcon": ProxyAnchorSupCon,
    "proxy_anchor": losses.ProxyAnchorLoss,
    "arcface": losses.ArcFaceLoss,
}
BATCH_LOSSES: dict[str, LossFactory] = {
    "multi_similarity": losses.MultiSimilarityLoss,
    "triplet": losses.TripletMarginLoss,
    "contrastive": losses.ContrastiveLoss,
    "ntxent": losses.NTXentLoss,
    "supcon": losses.SupConLoss,
    "circle": losses.CircleLoss,
}
SESSION_LOSSES: dict[str, LossFactory] = {
    "triplet": losses.TripletMarginLoss,
    "contrastive": losses.ContrastiveLoss,
}
MINERS: dict[str, Callable[[], nn.Module]] = {
    "multi_similarity": miners.MultiSimilarityMiner,
    "triplet": lambda: miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard"),
}
LOSSES: dict[str, dict[str, LossFactory]] = {
    "class": PROXY_LOSSES | BATCH_LOSSES,
    "session": SESSION_LOSSES,
    "unlabeled": BATCH_LOSSES,
}
# docs/training.md compares the losses.
DEFAULT_LOSS = {"class": "proxy_anchor_supcon", "session": "contrastive", "unlabeled": "ntxent"}
DEFAULT_OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("unlabeled", "ntxent"): {"temperature": 0.2},
    ("session", "triplet"): {"margin": 0.2},
    ("class", "triplet"): {"margin": 0.2},
}
_GIVEN = {"num_classes", "embedding_size"}  # set from the data and the model, not by a caller
# A request may only set plain numbers and switches, not these.
_NOT_PLAIN = {"self", "args", "kwargs", "reducer", "distance", "embedding_regularizer", "embedding_reg_weight"} | {
    "weight_regularizer",
    "weight_reg_weight",
    "weight_init_func",
    "mat_based_loss",
    "triplets_per_anchor",
}


class MetricLoss(nn.Module):
    """A loss on the pairs or triplets of a batch: on all of them, or on those that a miner finds hard enough."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        pairs = None if self.miner is None else self.miner(embeddings, labels)
        value: Tensor = self.loss(embeddings, labels, pairs)
        return value


class MemoryLoss(nn.Module):
    """A loss that also compares a batch with the embeddings of the batches before it.

    This is the cross-batch memory (Wang et al. 2020, arXiv:1912.06798) of pytorch-metric-learning. We also save its
    queue in the state, so that a resumed run has the same memory.
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None, *, embedding_size: int, memory_size: int) -> None:
        super().__init__()
        self.memory = losses.CrossBatchMemory(loss, embedding_size, memory_size, miner)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.memory(embeddings, labels)
        return value

    def get_extra_state(self) -> dict[str, Any]:
        """Return the queue; torch puts it into `state_dict`."""
        memory = self.memory
        return {
            "embeddings": memory.embedding_memory.clone(),
            "labels": memory.label_memory.clone(),
            "next": memory.queue_idx,
            "full": memory.has_been_filled,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the queue."""
        self.memory.embedding_memory, self.memory.label_memory = state["embeddings"].clone(), state["labels"].clone()
        self.memory.queue_idx, self.memory.has_been_filled = state["next"], state["full"]
        self.memory.memory_size = len(state["labels"])  # a run goes on with the memory that it began with


class SessionLoss(nn.Module):
    """A loss on the triplets of each session: anchor and positive fit the session, the negative does not.

    The root and the matches labelled 1 belong together. The matches labelled -1 fit none of these; they are not
    compared with each other. Items of different sessions are never compared.
    """

    def __init__(self, loss: nn.Module, *, of_pairs: bool) -> None:
        super().__init__()
        self.loss = loss
        self.of_pairs = of_pairs

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        tuples = session_pairs(labels) if self.of_pairs else session_triplets(labels)
        value: Tensor = self.loss(embeddings, labels[:, 0], tuples)
        return value


def session_pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return index vectors (anchor, positive, anchor, negative), int64, for all pairs within sessions.

    Args: labels: (B, 2) int64, `(session, 0 | 1 | -1)`.
    """
    session, kind = labels[:, 0], labels[:, 1]
    same = session[:, None] == session[None, :]
    fits = kind >= 0
    different = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    anchor, positive = torch.nonzero(same & fits[:, None] & fits[None, :] & different, as_tuple=True)
    other, negative = torch.nonzero(same & fits[:, None] & ~fits[None, :], as_tuple=True)
    return anchor, positive, other, negative


def session_triplets(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return index vectors (anchor, positive, negative), int64, for all triplets within sessions."""
    anchor, positive, other, negative = session_pairs(labels)
    pair, partner = torch.nonzero(anchor[:, None] == other[None, :], as_tuple=True)
    return anchor[pair], positive[pair], negative[partner]


def loss_name(asked: str, kind: str) -> str:
    """Return the name of the loss that the option `loss` means for data of `kind`."""
    return DEFAULT_LOSS[kind] if asked == "auto" else asked


def build_loss(
    name: str,
    kind: str,
    *,
    num_classes: int,
    embedding_size: int,
    options: dict[str, Any] | None = None,
    memory_size: int = 0,
) -> nn.Module:
    """Return the loss called `name` for data of `kind`; `auto` is the default of the kind.

    Args: memory_size: embeddings of earlier batches to compare with; only for losses that compare items.
    Raises: InvalidParameter: the kind has no such loss, or the loss has no such argument (the message lists those that
        exist), or `memory_size` does not fit the loss.
    """
    known = LOSSES[kind]
    name = loss_name(name, kind)
    if name not in known:
        raise InvalidParameter(f"There is no loss {name!r} for {kind} data; there are: auto, {', '.join(known)}.")
    if memory_size and (kind == "session" or name in PROXY_LOSSES):
        raise InvalidParameter(
            f"memory_size does not go with the loss {name!r} on {kind} data, which compares nothing across batches; "
            f"leave it out, or choose one of: {', '.join(BATCH_LOSSES)}."
        )
    arguments = DEFAULT_OPTIONS.get((kind, name), {}) | (options or {})
    accepted = loss_arguments(known[name])
    for argument, value in arguments.items():
        if argument not in accepted:
            raise InvalidParameter(
                f"loss_options: the loss {name!r} has no argument {argument!r}; it has: {', '.join(accepted)}."
            )
        if not isinstance(value, (bool, int, float)):
            raise InvalidParameter(f"loss_options: {argument!r} of the loss {name!r} must be a number, not {value!r}.")
    if name in PROXY_LOSSES:
        arguments |= {"num_classes": num_classes, "embedding_size": embedding_size}
    loss = known[name](**arguments)
    if kind == "session":
        return SessionLoss(loss, of_pairs=name == "contrastive")
    miner = MINERS[name]() if name in MINERS and kind == "class" else None
    if memory_size:
        return MemoryLoss(loss, miner, embedding_size=embedding_size, memory_size=memory_size)
    return MetricLoss(loss, miner)


def loss_arguments(factory: LossFactory) -> list[str]:
    """Return the names of the loss arguments that a caller may set, from the signatures of its constructors."""
    names: list[str] = []
    for base in inspect.getmro(factory):
        if not base.__module__.startswith(("pytorch_metric_learning.losses", __name__)):
            continue
        names += [name for name in inspect.signature(base).parameters if name not in names]
    return [name for name in names if name not in _GIVEN | _NOT_PLAIN]
