"""RawPixels: the image itself as features, the floor of every comparison."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor

from mmdiffrep.registry import MODELS

from ..adapters.base import map_size


@MODELS.register_module()
class RawPixels(BaseModule):
    """The normalised image, averaged to each of ``strides``. Nothing is trained."""

    def __init__(self, strides: Sequence[int] = (1,), init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        self.out_strides = list(strides)
        self.out_channels = [3] * len(self.out_strides)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> one map (B, 3, ceil(H/s), ceil(W/s)) a stride."""
        return tuple(
            F.adaptive_avg_pool2d(image, map_size(tuple(image.shape[-2:]), stride))
            for stride in self.out_strides
        )
