"""Heads of classifiers: pooled and linear, an MLP, a small CNN (DDAE, Xiang et al. 2023; GDC, Mukhopadhyay et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS


@MODELS.register_module()
class PooledHead(BaseModule):
    """Each map is averaged to pool×pool cells in fp32; all cells of all maps go through one linear layer, or an MLP.

    DDAE's probe is ``pool=1``; GDC's linear heads are ``pool=1, 2, 4``: of 1024 channels 1024, 4096, 16384 features.

    Args:
        num_classes: K.
        in_channels: of each map (filled in by ``DiffusionClassifier``).
        pool: cells a side.
        hidden: widths of hidden layers, each followed by ReLU; empty: linear.
        norm: ``'bn'``: batch normalisation of the features without weights, so that one rate fits every block; None.
        dropout: before the last layer.

    Raises:
        ValueError: sizes that do not fit; maps of other numbers or channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int] | int,
        pool: int = 1,
        hidden: Sequence[int] = (),
        norm: str | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = channels_of(in_channels)
        if min(num_classes, pool, *hidden) < 1 or norm not in (None, 'bn'):
            raise ValueError(
                f"num_classes={num_classes}, pool={pool}, hidden={list(hidden)}, norm={norm!r} do not fit; allowed: whole numbers from 1, "
                "norm None or 'bn'"
            )
        self.num_classes, self.pool = num_classes, pool
        width = sum(self.in_channels) * pool**2
        self.norm = nn.BatchNorm1d(width, affine=False) if norm == 'bn' else nn.Identity()
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.ReLU(inplace=True)]
            width = size
        self.hidden = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_k, h_k, w_k) -> logits (B, K)."""
        check_maps(maps, self.in_channels)
        pooled = [F.adaptive_avg_pool2d(m.float(), self.pool).flatten(1) for m in maps]
        return self.fc(self.dropout(self.hidden(self.norm(torch.cat(pooled, 1)))))


@MODELS.register_module()
class ConvHead(BaseModule):
    """A small CNN: maps are averaged to one size and concatenated; 3×3 convolutions, BatchNorm, ReLU; global average; linear.

    GDC compares such a head; its widths are ours: each convolution halves the map as long as both sides have four cells or more.

    Args:
        num_classes: K.
        in_channels: of each map (filled in by ``DiffusionClassifier``).
        channels: of the convolutions.
        pool: cells a side to which larger maps are averaged; smaller ones are repeated.

    Raises:
        ValueError: sizes that do not fit; maps of other numbers or channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int] | int,
        channels: Sequence[int] = (256, 256),
        pool: int = 16,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = channels_of(in_channels)
        if min(num_classes, pool, *channels, len(channels)) < 1:
            raise ValueError(
                f'num_classes={num_classes}, channels={list(channels)}, pool={pool} do not fit; allowed: whole numbers from 1, one '
                'convolution or more'
            )
        self.num_classes, self.pool = num_classes, pool
        widths = [sum(self.in_channels), *channels]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in channels)
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_k, h_k, w_k) -> logits (B, K)."""
        check_maps(maps, self.in_channels)
        size = [min(self.pool, max(m.shape[k] for m in maps)) for k in (-2, -1)]
        x = torch.cat([F.adaptive_avg_pool2d(m, size) for m in maps], 1)
        for conv, norm in zip(self.convs, self.norms):
            stride = 2 if min(x.shape[-2:]) >= 4 else 1
            x = F.relu(norm(F.conv2d(x, conv.weight, stride=stride, padding=1)))
        return self.fc(x.float().mean((2, 3)))


def channels_of(in_channels: Sequence[int] | int) -> list[int]:
    """A head's input channels; ValueError where a map's depend on the image's size."""
    channels = [in_channels] if isinstance(in_channels, int) else list(in_channels)
    if not channels or min(channels) < 1:
        raise ValueError(
            f'in_channels={channels} does not fit; allowed: at least one map, each of one channel or more (probabilities of '
            'self-attention have as many as the image has places: pool them by an adapter)'
        )
    return channels


def check_maps(maps: Sequence[Tensor], channels: Sequence[int]) -> None:
    """ValueError for other maps than a head was built for."""
    found = [m.shape[1] for m in maps]
    if found != list(channels):
        raise ValueError(
            f'maps of {found} channels were given; the head was built for {list(channels)}: give it in_channels={found}'
        )
