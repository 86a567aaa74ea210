"""Features of single pixels from maps that stay at their native size: what upsampling everything first would give there.

DDPM-Seg (Baranchuk et al., ICLR 2022) upsamples all maps of all images to the image's size, 103 GiB for 50 images at 256².
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def neighbours(places: Tensor, cells: int, side: float) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the two cells around each place, and the second one's weight, as ``F.interpolate`` takes them.

    Bilinear, ``align_corners=False``: pixel i of an image of ``side`` pixels has its centre at i + 0.5.

    Args:
        places: pixels (n,), whole numbers or between them.
        cells: the map's size.
        side: the size that the map would be resized to.
    """
    centre = ((places.to(torch.float64) + 0.5) * (cells / side) - 0.5).clamp(0, cells - 1)
    first = centre.floor().long()
    return first, (first + 1).clamp(max=cells - 1), (centre - first).float()


def sample_pixels(maps: Sequence[Tensor], y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """One image's features at pixels, (n, ΣC_k) float32: as ``F.interpolate(map, size)[..., y, x]`` of every map.

    Args:
        maps: of the image, each (h_k, w_k, C_k): channels last, so that a pixel's features lie together.
        y, x: pixels (n,), whole numbers in ``size``.
        size: (H, W) of the image, which each map covers.

    Raises:
        ValueError: a pixel outside the image.
    """
    height, width = size
    if y.numel() and not (
        0 <= int(y.min()) <= int(y.max()) < height and 0 <= int(x.min()) <= int(x.max()) < width
    ):
        raise ValueError(
            f'pixels y {int(y.min())} … {int(y.max())}, x {int(x.min())} … {int(x.max())} were asked of an image of {height}×{width} '
            f'(height × width); allowed: y 0 … {height - 1}, x 0 … {width - 1}'
        )
    found = torch.empty(len(y), sum(m.shape[-1] for m in maps))
    begin = 0
    for m in maps:
        rows, columns, channels = m.shape
        flat = m.reshape(rows * columns, channels)
        top, bottom, down = neighbours(y, rows, height)
        left, right, across = neighbours(x, columns, width)
        down, across = down[:, None], across[:, None]
        corners = torch.cat(
            [
                top * columns + left,
                top * columns + right,
                bottom * columns + left,
                bottom * columns + right,
            ]
        )
        a, b, c, d = flat.index_select(0, corners).float().view(4, len(y), channels)
        upper, lower = torch.lerp(a, b, across), torch.lerp(c, d, across)
        found[:, begin : begin + channels] = torch.lerp(upper, lower, down)
        begin += channels
    return found
