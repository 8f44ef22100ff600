"""Several processes, called ranks, that train one run together. A process that trains alone uses the same methods.

Each rank embeds its share of each batch. On every rank the loss sees all embeddings of the batch, in the sampler's
order. Then each rank backpropagates the loss's gradient of the embeddings that it made. So the gradient is the same as
in one process with the whole batch, also with uneven shares, and the memory and miners of a loss need not know about
ranks. (pytorch-metric-learning's DistributedLossWrapper orders the batch differently on every rank, which breaks a
memory of batches, and `torch.distributed.nn.functional.all_gather` needs even shares.)
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import ConfigurationError

PATIENCE = datetime.timedelta(days=7)  # rank 0 may decode for hours; if a rank dies, its parent notices at once

T = TypeVar("T")


class Ranks:
    """This process among those that train a run. By default it is alone, and no method talks to other processes."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count
        self._joined = False

    @property
    def alone(self) -> bool:
        """Whether this is the only rank."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which reports and saves."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Connect to the other ranks that the environment names (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE).

        A process group that is there already is used as it is, and `leave` lets it be.

        Raises: ConfigurationError: this process has another place in that group.
        """
        if self.alone:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if dist.is_initialized():
            self._check_group()
            return
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        self._joined = True

    def _check_group(self) -> None:
        there = (dist.get_rank(), dist.get_world_size())
        if there != (self.rank, self.count):
            raise ConfigurationError(
                f"This process is rank {self.rank} of {self.count} by its environment (RANK, WORLD_SIZE), but rank "
                f"{there[0]} of {there[1]} in the process group that is there; make them agree."
            )

    def leave(self) -> None:
        """Disconnect from the other ranks."""
        if self._joined:
            dist.destroy_process_group()
            self._joined = False

    def share(self, count: int, rank: int | None = None) -> slice:
        """Return which of `count` items belong to a rank, by default this one: as even as can be, possibly none."""
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.count, (rank + 1) * count // self.count)

    def items(self, items: np.ndarray) -> np.ndarray:
        """Return this rank's share of `items` (n,). If it is empty, return the first item: every rank must compute."""
        mine = items[self.share(len(items))]
        return mine if len(mine) else items[:1]

    def share_of(self, rows: Tensor) -> Tensor:
        """Return this rank's share of `rows` (n, D), with a row for each item that `items` returned.

        If the share is empty, that is one row of zeros: the item that the rank computed adds nothing.
        """
        mine = rows[self.share(len(rows))]
        return mine if len(mine) else torch.zeros_like(rows[:1])

    def gather(self, mine: Tensor, count: int) -> Tensor:
        """Return the rows of all ranks, (count, D). Each rank gives its share. Gathered rows have no graph."""
        if self.alone:
            return mine
        shares = [self.share(count, rank) for rank in range(self.count)]
        sizes = [share.stop - share.start for share in shares]
        padded = mine.new_zeros((max(sizes), *mine.shape[1:]))
        padded[: sizes[self.rank]] = mine[: sizes[self.rank]]
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded)
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    def agree(self, value: Callable[[], T]) -> T:
        """Return what `value` returns on rank 0. The other ranks do not call it."""
        if self.alone:
            return value()
        found: list[Any] = [value() if self.first else None]
        dist.broadcast_object_list(found, src=0)
        result: T = found[0]
        return result

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        if self.alone:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Wrap `model` so that each backward pass leaves the mean of the gradients of all ranks."""
        if self.alone:
            return model
        # A step may leave parameters unused, such as those of a pooling layer: torch must not wait for their gradients.
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Return a context in which gradients add up on this rank only."""
        synced: contextlib.AbstractContextManager[None] = (
            model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
        )
        return synced

    def agree_on_gradients(self, loss: nn.Module) -> None:
        """Take rank 0's gradients of the loss's parameters: each rank computed the same ones, up to rounding."""
        if not self.alone:
            for parameter in loss.parameters():
                if parameter.grad is not None:
                    dist.broadcast(parameter.grad, src=0)

    def average(self, buffers: Iterable[Tensor]) -> None:
        """Set the floating-point buffers, such as the statistics of norms, to their mean over the ranks."""
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        if not self.alone and floating:
            together = torch.cat([buffer.reshape(-1) for buffer in floating])  # one message per buffer would be slow
            dist.all_reduce(together)
            parts = (together / self.count).split([buffer.numel() for buffer in floating])
            for buffer, mean in zip(floating, parts, strict=True):
                buffer.copy_(mean.view_as(buffer))

    def seed(self, seed: int, step: int) -> None:
        """Seed torch from the seed, the step and the rank. In a process that is alone, do nothing."""
        if not self.alone:
            state = np.random.SeedSequence([seed, step, self.rank]).generate_state(1)
            torch.manual_seed(int(state[0]))


ALONE = Ranks()


def unwrapped(model: nn.Module) -> nn.Module:
    """Undo `Ranks.wrapped`."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def ranks_of_environment() -> Ranks:
    """Return this process's rank, as torchrun, `accelerate launch` or rank 0 set it; alone if none of them did."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
