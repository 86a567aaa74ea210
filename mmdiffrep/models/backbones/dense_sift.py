"""DenseSift: SIFT descriptors on a grid as a feature map, the classical floor of correspondence."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.model import BaseModule
from torch import Tensor

from mmdiffrep.registry import MODELS

from ..adapters.base import map_size


@MODELS.register_module()
class DenseSift(BaseModule):
    """SIFT descriptors (Lowe 2004, OpenCV's) of upright patches around the centres of a grid's cells; nothing is trained.

    Each is square-rooted after dividing by its sum (RootSIFT, Arandjelović & Zisserman 2012), so that its length is 1.

    Args:
        stride: of the grid, in pixels.
        patch: diameter of a keypoint as OpenCV takes it; a descriptor sees about six times as much.
        image_mean, image_std: what the data preprocessor subtracted and divided by, RGB.
    """

    def __init__(
        self,
        stride: int = 4,
        patch: float = 8.0,
        image_mean: Sequence[float] = (0.0, 0.0, 0.0),
        image_std: Sequence[float] = (1.0, 1.0, 1.0),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if stride < 1 or patch <= 0:
            raise ValueError(f'stride={stride}, patch={patch} do not fit; allowed: stride from 1, patch above 0')
        self.stride, self.patch = stride, patch
        self.register_buffer('image_mean', torch.tensor(image_mean).float().view(3, 1, 1), persistent=False)
        self.register_buffer('image_std', torch.tensor(image_std).float().view(3, 1, 1), persistent=False)
        self.out_channels, self.out_strides = [128], [stride]

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) RGB -> one map (B, 128, ceil(H/s), ceil(W/s))."""
        height, width = image.shape[-2:]
        rows, columns = map_size((height, width), self.stride)
        sift = cv2.SIFT_create()
        # centres of cells that cover the image evenly
        y = (np.arange(rows) + 0.5) * height / rows - 0.5
        x = (np.arange(columns) + 0.5) * width / columns - 0.5
        points = [cv2.KeyPoint(float(b), float(a), self.patch, 0) for a in y for b in x]
        maps = []
        for one in (image * self.image_std + self.image_mean).round().clamp(0, 255).byte().cpu():
            grey = cv2.cvtColor(one.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
            _, found = sift.compute(grey, points)
            found = np.sqrt(found / np.maximum(found.sum(1, keepdims=True), 1e-12))
            maps.append(torch.from_numpy(found).view(rows, columns, 128).permute(2, 0, 1))
        return (torch.stack(maps).to(image),)
