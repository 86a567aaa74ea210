"""StridePyramid: taps of any channels and strides -> one map a stride, all of one width.

ODISE's projection of diffusion features (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS

from .base import check_inputs, check_strides, check_taps, map_size, resize_map, routes


class Bottleneck(nn.Module):
    """1×1 to ``width``, 3×3, 1×1 to ``out_channels``, GroupNorm after each, a projected shortcut, ReLU."""

    def __init__(self, in_channels: int, width: int, out_channels: int, groups: int) -> None:
        super().__init__()

        def conv(cin: int, cout: int, kernel: int) -> list[nn.Module]:
            return [
                nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False),
                nn.GroupNorm(math.gcd(groups, max(cout // 4, 1)), cout),
            ]

        self.branch = nn.Sequential(
            *conv(in_channels, width, 1), nn.ReLU(inplace=True),
            *conv(width, width, 3), nn.ReLU(inplace=True),
            *conv(width, out_channels, 1),
        )  # fmt: skip
        self.shortcut = nn.Sequential(*conv(in_channels, out_channels, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


@MODELS.register_module()
class StridePyramid(BaseModule):
    """One map of ``out_channels`` at each of ``strides``.

    Each tap's stride is clamped to the range of ``strides`` and rounded to the nearest of them; the tap is resized there
    and goes through its own bottleneck; taps of one stride are summed. A stride that no tap has is made from the tap
    nearest to it (the coarser one of two), through a bottleneck of its own.

    Args:
        in_channels, in_strides: of the taps, in their order. DiffusionBackbone fills them in when the pyramid is its adapter.
        out_channels: of every map.
        strides: of the maps, image pixels per map pixel.
        width: inner channels of the bottlenecks.
        resize: how taps are resized: ``'nearest'`` as in ODISE, or ``'bilinear'``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[float],
        out_channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32),
        width: int = 128,
        groups: int = 32,
        resize: str = 'bilinear',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_taps(self, in_channels, in_strides)
        check_strides(strides)
        if resize not in ('nearest', 'bilinear'):
            raise ValueError(f"resize={resize!r} is unknown; allowed: 'nearest', 'bilinear'")
        self.in_channels, self.in_strides = list(in_channels), list(in_strides)
        self.out_strides, self.out_channels = list(strides), [out_channels] * len(strides)
        self.resize = resize
        self.routes = routes(self.in_strides, self.out_strides)  # [(tap, level)]
        self.projections = nn.ModuleList(
            Bottleneck(in_channels[tap], width, out_channels, groups) for tap, _ in self.routes
        )

    def forward(
        self, features: Sequence[Tensor], image_size: tuple[int, int] | None = None
    ) -> tuple[Tensor, ...]:
        """Maps (B, C_k, h_k, w_k) of an image (H, W) -> one (B, out_channels, ceil(H/s), ceil(W/s)) a stride."""
        check_inputs(self, features)
        if image_size is None:
            image_size = tuple(round(side * self.in_strides[0]) for side in features[0].shape[-2:])
        maps: list[Tensor | None] = [None] * len(self.out_strides)
        for (tap, level), projection in zip(self.routes, self.projections):
            size = map_size(image_size, self.out_strides[level])
            y = projection(resize_map(features[tap], size, self.resize))
            maps[level] = y if maps[level] is None else maps[level] + y
        return tuple(maps)
