"""StrideConcat: taps of one stride side by side, some of them averaged first.

So VPD joins cross-attention maps to features (Zhao et al., ICCV 2023, https://arxiv.org/abs/2303.02153, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS

from .base import (
    check_inputs,
    check_strides,
    check_taps,
    map_size,
    projection,
    resize_map,
    routes,
)


@MODELS.register_module()
class StrideConcat(BaseModule):
    """One map a stride: its taps concatenated in their order.

    Args:
        in_channels, in_strides: of the taps. DiffusionBackbone fills them in when this is its adapter.
        average: lists of tap indices (from 0). The taps of a list, all of the same channels and stride, count as one: their mean,
            at the place of the first of them.
        strides: of the maps. Each tap is resized to the nearest of them; a stride that no tap is nearest to takes the tap that is
            nearest to it, the coarser one of two. Default: the taps' own strides, finest first.
        out_channels: project each map to so many channels (1×1 convolution, GroupNorm, ReLU); default: leave them as they are,
            and nothing in here is trained.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[float],
        average: Sequence[Sequence[int]] = (),
        strides: Sequence[float] | None = None,
        out_channels: int | None = None,
        groups: int = 32,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_taps(self, in_channels, in_strides)
        self.in_channels, self.in_strides = list(in_channels), list(in_strides)
        self.parts = _parts(self.in_channels, self.in_strides, average)
        own = [self.in_strides[part[0]] for part in self.parts]
        self.out_strides = sorted(set(own)) if strides is None else list(strides)
        check_strides(self.out_strides)
        self.routes = routes(own, self.out_strides)  # [(part, level)]
        totals = [0] * len(self.out_strides)
        for part, level in self.routes:
            totals[level] += self.in_channels[self.parts[part][0]]
        self.out_channels = totals if out_channels is None else [out_channels] * len(totals)
        self.projections = nn.ModuleList(projection(n, out_channels, groups) for n in totals)

    def forward(
        self, features: Sequence[Tensor], image_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Maps (B, C_k, h_k, w_k) of an image (H, W) -> one (B, sum C_k or out_channels, ceil(H/s), ceil(W/s)) a stride."""
        check_inputs(self, features)
        if image_size is None:
            image_size = tuple(round(side * self.in_strides[0]) for side in features[0].shape[-2:])
        means = [
            features[part[0]] if len(part) == 1 else sum(features[tap] for tap in part) / len(part)
            for part in self.parts
        ]
        levels: list[list[Tensor]] = [[] for _ in self.out_strides]
        for part, level in self.routes:
            size = map_size(image_size, self.out_strides[level])
            levels[level].append(resize_map(means[part], size))
        return tuple(
            project(torch.cat(maps, dim=1)) for project, maps in zip(self.projections, levels)
        )


def _parts(
    channels: list[int], strides: list[float], average: Sequence[Sequence[int]]
) -> list[list[int]]:
    """The taps, with those of each list of ``average`` as one part, in the order of their first taps."""
    groups = [list(group) for group in average]
    named = [tap for group in groups for tap in group]
    unknown = [tap for tap in named if tap not in range(len(channels))]
    twice = sorted({tap for tap in named if named.count(tap) > 1})
    if unknown or twice or not all(groups):
        raise ValueError(
            f'average={groups} '
            + (
                f'names taps {unknown} of {len(channels)}; allowed: 0 to {len(channels) - 1}'
                if unknown
                else f'names taps {twice} twice; give each once'
                if twice
                else 'holds an empty list; name at least one tap in each'
            )
        )
    for group in groups:
        kinds = {(channels[tap], strides[tap]) for tap in group}
        if len(kinds) > 1:
            raise ValueError(
                f'average={groups}: taps {group} have (channels, stride) {sorted(kinds)}; only taps of the same channels and '
                'stride can be averaged (tools/list_taps.py CONFIG prints them)'
            )
    alone = [[tap] for tap in range(len(channels)) if tap not in named]
    return sorted([*groups, *alone], key=min)
