"""ConcatUpsample: all taps at one size, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS

from .base import check_inputs, check_taps, map_size, projection


@MODELS.register_module()
class ConcatUpsample(BaseModule):
    """One map: the taps resized bilinearly to one stride and concatenated in their order.

    Args:
        in_channels, in_strides: of the taps. DiffusionBackbone fills them in when this is its adapter.
        stride: of the map; default the finest tap's.
        out_channels: project to so many channels (1×1 convolution, GroupNorm, ReLU); default: leave them as they are, and
            nothing in here is trained.
        normalize: so that no tap drowns the others: ``'unit'`` scales each tap's vector at each place to the length
            sqrt(channels); ``'batch'`` is batch normalisation without trained parameters, as in linear probes.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[float],
        stride: float | None = None,
        out_channels: int | None = None,
        normalize: str | None = None,
        groups: int = 32,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_taps(self, in_channels, in_strides)
        if stride is not None and stride <= 0:
            raise ValueError(f'stride must be positive, got {stride}')
        self.in_channels, self.in_strides = list(in_channels), list(in_strides)
        self.stride = min(in_strides) if stride is None else stride
        if normalize not in (None, 'unit', 'batch'):
            raise ValueError(f"normalize={normalize!r} is unknown; allowed: None, 'unit', 'batch'")
        self.normalize = normalize
        total = sum(in_channels)
        self.norm = nn.BatchNorm2d(total, affine=False) if normalize == 'batch' else nn.Identity()
        self.projection = projection(total, out_channels, groups)
        self.out_channels = [out_channels or total]
        self.out_strides = [self.stride]

    def forward(
        self, features: Sequence[Tensor], image_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Maps (B, C_k, h_k, w_k) of an image (H, W) -> one map (B, sum C_k or out_channels, ceil(H/s), ceil(W/s))."""
        check_inputs(self, features)
        if image_size is None:
            image_size = tuple(round(side * self.in_strides[0]) for side in features[0].shape[-2:])
        size = map_size(image_size, self.stride)
        maps = []
        for x in features:
            if self.normalize == 'unit':
                x = F.normalize(x, dim=1) * math.sqrt(x.shape[1])
            if x.shape[-2:] != size:
                x = F.interpolate(x, size=size, mode='bilinear', align_corners=False)
            maps.append(x)
        return (self.projection(self.norm(torch.cat(maps, dim=1))),)
