"""What every scenario gives: one implementation, built and ready to be called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Case:
    """``call`` does the task once, for so many ``images``, and gives what is compared: name -> tensor."""

    call: Callable[[], dict[str, Tensor]]
    images: int = 1
    counts_flops: bool = True


def picture(size: int, device: str, seed: int = 0) -> Tensor:
    """A drawn picture with structure, (1, 3, size, size) in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 16, 16, generator=g) * 2 - 1
    return F.interpolate(coarse, (size, size), mode='bicubic').clamp(-1, 1).to(device)
