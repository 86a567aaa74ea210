"""What adapters share: sizes of maps, which tap goes where, and the check of what they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def map_size(image_size: tuple[int, int], stride: float) -> tuple[int, int]:
    """Size of a map that covers an image (H, W) at a stride: rounded up, at least 1×1."""
    return tuple(max(1, int(-(-side // stride))) for side in image_size)  # type: ignore[return-value]


def check_inputs(adapter: Any, features: Sequence[Tensor]) -> None:
    """The features that come must be those the adapter was built for."""
    given = [feature.shape[1] for feature in features]
    if given != adapter.in_channels:
        raise ValueError(
            f'{type(adapter).__name__} was built for taps of {adapter.in_channels} channels and got maps of {given}. '
            'As the adapter inside DiffusionBackbone it is built to fit; as a neck its in_channels and in_strides must be '
            "the backbone's out_channels and out_strides (tools/list_taps.py CONFIG prints them)"
        )


def check_taps(adapter: Any, in_channels: Sequence[int], in_strides: Sequence[float]) -> None:
    """ValueError unless channels and strides are those of the same taps."""
    if not in_channels or len(in_channels) != len(in_strides):
        raise ValueError(
            f'{type(adapter).__name__} needs channels and strides of the same taps, got in_channels={list(in_channels)}, '
            f'in_strides={list(in_strides)}'
        )


def check_strides(strides: Sequence[float]) -> None:
    if list(strides) != sorted(set(strides)) or not strides or min(strides) <= 0:
        raise ValueError(f'strides must rise and be positive, got {list(strides)}')


def resize_map(x: Tensor, size: tuple[int, int], mode: str = 'bilinear') -> Tensor:
    """(B, C, h, w) -> (B, C, *size); mode is ``'nearest'`` or ``'bilinear'``."""
    if x.shape[-2:] == size:
        return x
    if mode == 'nearest':
        return F.interpolate(x, size=size, mode='nearest-exact')
    if x.shape[-2] > size[0] and x.shape[-1] > size[1]:
        # averages what it leaves out, where bilinear would skip it
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode='bilinear', align_corners=False)


def projection(in_channels: int, out_channels: int | None, groups: int = 32) -> nn.Module:
    """1×1 convolution, GroupNorm, ReLU; nothing where ``out_channels`` is None."""
    if out_channels is None:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.GroupNorm(math.gcd(groups, max(out_channels // 4, 1)), out_channels),
        nn.ReLU(inplace=True),
    )


def routes(in_strides: Sequence[float], out_strides: Sequence[float]) -> list[tuple[int, int]]:
    """Which tap feeds which level: (tap, level), every tap one level, and every level at least one tap.

    A tap goes to the level nearest to it in octaves. A level that no tap feeds takes the tap nearest to it, the coarser one of
    two.
    """

    def distance(a: float, b: float) -> float:
        return abs(math.log2(a) - math.log2(b))

    found = []
    for tap, stride in enumerate(in_strides):
        level = min(range(len(out_strides)), key=lambda k: distance(out_strides[k], stride))
        found.append((tap, level))
    fed = {level for _, level in found}
    for level, stride in enumerate(out_strides):
        if level not in fed:
            tap = min(
                range(len(in_strides)),
                key=lambda k: (distance(in_strides[k], stride), -in_strides[k], -k),
            )
            found.append((tap, level))
    return sorted(found, key=lambda route: (route[1], route[0]))
