"""Maps that cover exactly the image that was given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.base import map_size


def cover(feature: Tensor, stride: float, image_size: tuple[int, int]) -> Tensor:
    """The part of a map that covers the image (H, W), as ceil(H/stride) × ceil(W/stride).

    Heads stretch maps over the image they belong to. Where a stride does not divide a side, cropping would shift them by part of
    a pixel, so the map is resampled to cover exactly the image.
    """
    size = map_size(image_size, stride)
    exact = tuple(round(n * stride) for n in size) == tuple(image_size)
    if exact:
        return feature[..., : size[0], : size[1]]
    grids = []
    for n, side, cells in zip(size, image_size, feature.shape[-2:]):
        centres = (torch.arange(n, device=feature.device, dtype=torch.float32) + 0.5) * (side / n)
        grids.append(centres / (cells * stride) * 2 - 1)
    y, x = torch.meshgrid(*grids, indexing='ij')
    grid = torch.stack([x, y], dim=-1)[None].expand(len(feature), -1, -1, -1)
    sampled = F.grid_sample(
        feature.float(), grid, mode='bilinear', padding_mode='border', align_corners=False
    )
    return sampled.to(feature.dtype)
