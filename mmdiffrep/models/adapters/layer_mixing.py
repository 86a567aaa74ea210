"""LayerMixing: one map of many taps and timesteps, by trained bottlenecks and weights (Diffusion Hyperfeatures).

Luo et al., "Diffusion Hyperfeatures: Searching Through Time and Space for Semantic Correspondence", NeurIPS 2023, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS

from .base import check_inputs, check_taps, map_size, resize_map
from .stride_pyramid import Bottleneck


@MODELS.register_module()
class LayerMixing(BaseModule):
    """One map: each tap through a bottleneck of its layer, at one stride, and summed with trained weights that add up to 1.

    Bottlenecks work at the smaller of a tap's size and the map's: finer taps are resized before them, coarser ones behind (in the paper all before).

    Args:
        in_channels, in_strides: of the taps, t-major. Filled in where this is an adapter or a neck.
        out_channels: of the map.
        width: inner channels of the bottlenecks; default: a quarter of ``out_channels``.
        stride: of the map; default: the finest tap's.
        timesteps: how many times the same layers come; they share their bottlenecks, and each timestep has weights of its own.

    Raises:
        ValueError: taps that are no multiple of the timesteps, or whose channels differ between them.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[float],
        out_channels: int = 384,
        width: int | None = None,
        stride: float | None = None,
        timesteps: int = 1,
        groups: int = 32,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_taps(self, in_channels, in_strides)
        layers, rest = divmod(len(in_channels), max(timesteps, 1))
        if timesteps < 1 or rest or list(in_channels) != list(in_channels[:layers]) * timesteps:
            raise ValueError(
                f'timesteps={timesteps} does not fit taps of {list(in_channels)} channels; allowed: a number from 1 of times that the '
                'same layers come, t-major'
            )
        self.in_channels, self.in_strides = list(in_channels), list(in_strides)
        self.stride = min(in_strides) if stride is None else stride
        self.out_channels, self.out_strides = [out_channels], [self.stride]
        self.bottlenecks = nn.ModuleList(
            Bottleneck(channels, width or max(1, out_channels // 4), out_channels, groups)
            for channels in in_channels[:layers]
        )
        self.mixing = nn.Parameter(torch.zeros(len(in_channels)))

    @property
    def weights(self) -> Tensor:
        """Of each tap in the map, (taps,): they add up to 1."""
        return self.mixing.softmax(0)

    def forward(self, features: Sequence[Tensor], image_size: tuple[int, int] | None = None) -> tuple[Tensor, ...]:
        """Maps (B, C_k, h_k, w_k) of an image (H, W) -> one map (B, out_channels, ceil(H/s), ceil(W/s))."""
        check_inputs(self, features)
        if image_size is None:
            image_size = tuple(round(side * self.in_strides[0]) for side in features[0].shape[-2:])
        size = map_size(image_size, self.stride)
        total: Tensor | None = None
        for k, (x, weight) in enumerate(zip(features, self.weights)):
            finer = x.shape[-2] * x.shape[-1] > size[0] * size[1]
            x = self.bottlenecks[k % len(self.bottlenecks)](resize_map(x, size) if finer else x)
            y = weight * resize_map(x, size)
            total = y if total is None else total + y
        assert total is not None
        return (total,)
