"""Members that stop by themselves: when, and how what has stopped stays as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class Stopping(nn.Module):
    """Which members still learn. Its buffers are in checkpoints, so that a resumed run goes on exactly.

    As in DDPM-Seg: from epoch ``begin`` on, a member stops after more than ``patience`` batches without a new best loss.

    Args:
        members: M.
        begin: the first epoch that counts, from 1.
        patience: batches; None: never.
    """

    best: Tensor
    waited: Tensor
    stopped: Tensor

    def __init__(self, members: int, begin: int = 5, patience: int | None = 50) -> None:
        super().__init__()
        if begin < 1 or (patience is not None and patience < 0):
            raise ValueError(
                f'begin={begin}, patience={patience} do not fit; allowed: begin (an epoch) from 1, patience (batches) from 0 or None'
            )
        self.begin, self.patience = begin, patience
        self.register_buffer('best', torch.full((members,), float('inf')))
        self.register_buffer('waited', torch.zeros(members, dtype=torch.long))
        self.register_buffer('stopped', torch.zeros(members, dtype=torch.bool))

    @property
    def learning(self) -> Tensor:
        return ~self.stopped

    def note(self, losses: Tensor, epoch: int) -> None:
        """After a step: each member's loss (M,) in a batch of ``epoch``, counted from 0."""
        if self.patience is None or epoch + 1 < self.begin:
            return
        losses, learning = losses.detach().to(self.best), self.learning
        better = losses < self.best
        self.best = torch.where(learning & better, losses, self.best)
        self.waited = torch.where(learning, torch.where(better, 0, self.waited + 1), self.waited)
        self.stopped = self.waited > self.patience


@contextlib.contextmanager
def unchanged(
    parameters: Iterable[nn.Parameter], optimizer: torch.optim.Optimizer, members: Tensor
) -> Iterator[None]:
    """A step inside leaves ``members`` (M,) of parameters (M, …), and their part of the optimizer's state, as they were.

    A zero gradient would not do: momentum and decay move weights all the same.
    """
    if not members.any():
        yield
        return
    held = []
    for p in parameters:
        state = [
            v
            for v in optimizer.state.get(p, {}).values()
            if torch.is_tensor(v) and v.shape == p.shape
        ]
        held += [(tensor, tensor.detach()[members].clone()) for tensor in (p, *state)]
    yield
    with torch.no_grad():
        for tensor, rows in held:
            tensor[members] = rows
