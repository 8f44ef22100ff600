"""Several processes, a rank each, that train one run together; and one process, for which nothing changes.

Every rank makes its share of each batch. The loss sees all embeddings of the batch, in the sampler's order, on every
rank, and the gradient of the loss by embedding is backpropagated by whoever made the embedding: so the gradient is
that of one process with the whole batch, of uneven shares too, and the memory and miners of a loss need not know of
ranks. (pytorch-metric-learning's DistributedLossWrapper orders the batch differently on every rank, which a memory of
batches does not survive, and `torch.distributed.nn.functional.all_gather` wants even shares.)
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

PATIENCE = datetime.timedelta(days=7)  # rank 0 may decode for hours; a rank that dies is noticed by its parent at once

T = TypeVar("T")


class Ranks:
    """This process among those that train a run. Unless told otherwise, it is alone and every method is a plain one."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this one reports and saves."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the other ranks, as the environment says (MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE)."""
        if not self.alone:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=PATIENCE)

    def leave(self) -> None:
        """Part from the other ranks."""
        if not self.alone and dist.is_initialized():
            dist.destroy_process_group()

    def share(self, count: int, rank: int | None = None) -> slice:
        """Which of `count` items are this rank's, or another's: as even as can be, possibly none."""
        rank = self.rank if rank is None else rank
        return slice(rank * count // self.count, (rank + 1) * count // self.count)

    def items(self, items: np.ndarray) -> np.ndarray:
        """This rank's share of `items` (n,); the first one where that would be none, since every rank must compute."""
        mine = items[self.share(len(items))]
        return mine if len(mine) else items[:1]

    def share_of(self, rows: Tensor) -> Tensor:
        """This rank's share of `rows` (n, D), in the shape of what it computed: a zero where it only stood in."""
        mine = rows[self.share(len(rows))]
        return mine if len(mine) else torch.zeros_like(rows[:1])

    def gather(self, mine: Tensor, count: int) -> Tensor:
        """Return the rows of all ranks, (count, D), each of which has its share. The result has no graph."""
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
        """Return what `value` returns in rank 0; the others do not call it."""
        if self.alone:
            return value()
        found: list[Any] = [value() if self.first else None]
        dist.broadcast_object_list(found, src=0)
        result: T = found[0]
        return result

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any rank."""
        if self.alone:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return `model` such that a backward pass leaves the mean of all ranks' gradients."""
        if self.alone:
            return model
        # What a step does not use, such as a pooling layer that is not asked for, must not be waited for.
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

    def no_sync(self, model: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within it, gradients add up in this rank alone."""
        synced: contextlib.AbstractContextManager[None] = (
            model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
        )
        return synced

    def agree_on_gradients(self, loss: nn.Module) -> None:
        """Take rank 0's gradients of what all ranks computed from the same: they may differ by rounding."""
        if not self.alone:
            for parameter in loss.parameters():
                if parameter.grad is not None:
                    dist.broadcast(parameter.grad, src=0)

    def average(self, buffers: Iterable[Tensor]) -> None:
        """Set the floating-point buffers, such as the statistics of norms, to their mean over the ranks."""
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        if not self.alone and floating:
            together = torch.cat([buffer.reshape(-1) for buffer in floating])  # a message each would be slow
            dist.all_reduce(together)
            parts = (together / self.count).split([buffer.numel() for buffer in floating])
            for buffer, mean in zip(floating, parts, strict=True):
                buffer.copy_(mean.view_as(buffer))

    def seed(self, seed: int, step: int) -> None:
        """Let the random numbers of a step depend on the seed, the step and the rank; alone they just go on."""
        if not self.alone:
            state = np.random.SeedSequence([seed, step, self.rank]).generate_state(1)
            torch.manual_seed(int(state[0]))


ALONE = Ranks()


def unwrapped(model: nn.Module) -> nn.Module:
    """Return what `Ranks.wrapped` got."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def ranks_of_environment() -> Ranks:
    """This process as torchrun, `accelerate launch` or rank 0 started it; alone if none of them did."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
