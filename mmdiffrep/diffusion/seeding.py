"""Random numbers of a seed of their own, which leave everybody else's alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's CPU generator begins at ``seed`` inside, and goes on outside as if nothing had been.

    ``torch.manual_seed`` would seed an accelerator's generators too: every process of a distributed training would then draw the
    same noise on its device, whatever seed it was given.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def run_seed() -> int:
    """The seed that the runner gave this process, as :func:`torch.manual_seed` was last called."""
    return torch.initial_seed() % 2**31
