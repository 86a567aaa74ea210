"""UpsampledMap: what a map resized to the image would say, without resizing its channels.

DIFT (Tang et al., NeurIPS 2023) resizes 1280 channels to the image's size before it compares. A product with a vector commutes with
bilinear resizing, and so it is the products that are resized here; lengths of resized features come from the products of
neighbouring cells.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mmdiffrep.diffusion.pixel_sampling import neighbours

METRICS = ('cosine', 'l2')


class UpsampledMap:
    """A map (C, h, w) as if it were resized bilinearly (``align_corners=False``) to an image of ``size`` (H, W).

    In double precision, at the map's own size: between cells that point to opposite sides the resized feature is short, and its
    direction would be lost in rounding.

    Raises:
        ValueError: a map of other dimensions, or an empty image.
    """

    def __init__(self, features: Tensor, size: tuple[int, int]) -> None:
        if features.dim() != 3 or min(*features.shape, *size) < 1:
            raise ValueError(f'a map {tuple(features.shape)} and an image of {tuple(size)} do not fit; allowed: (C, h, w) and (H, W)')
        self.features, self.size = features.double(), (int(size[0]), int(size[1]))
        device = features.device
        axes = [
            neighbours(torch.arange(side, device=device), cells, side, torch.float64)
            for side, cells in zip(self.size, features.shape[1:])
        ]
        (self.top, self.bottom, self.down), (self.left, self.right, self.across) = axes

    def at(self, points: Tensor) -> Tensor:
        """Features of points (n, 2), x and y in pixels (centres at whole numbers), between pixels too: (n, C)."""
        height, width = self.size
        x, y = points.to(self.features).unbind(1)
        top, bottom, down = neighbours(y.clamp(0, height - 1), self.features.shape[1], height, torch.float64)
        left, right, across = neighbours(x.clamp(0, width - 1), self.features.shape[2], width, torch.float64)
        f = self.features
        upper = torch.lerp(f[:, top, left], f[:, top, right], across)
        lower = torch.lerp(f[:, bottom, left], f[:, bottom, right], across)
        return torch.lerp(upper, lower, down).t()

    def resized(self, maps: Tensor) -> Tensor:
        """Maps (n, h, w) -> (n, H, W)."""
        rows = torch.lerp(maps[:, self.top], maps[:, self.bottom], self.down[:, None])
        return torch.lerp(rows[..., self.left], rows[..., self.right], self.across)

    @cached_property
    def squares(self) -> Tensor:
        """Squared length of the feature at each pixel, (H, W)."""
        f = self.features
        # products of a cell with itself, the next in its row, in its column, and the two diagonals of a square of cells
        own = f.square().sum(0)
        right, below = torch.zeros_like(own), torch.zeros_like(own)
        falling, rising = torch.zeros_like(own), torch.zeros_like(own)
        right[:, :-1] = (f[:, :, :-1] * f[:, :, 1:]).sum(0)
        below[:-1] = (f[:, :-1] * f[:, 1:]).sum(0)
        falling[:-1, :-1] = (f[:, :-1, :-1] * f[:, 1:, 1:]).sum(0)
        rising[:-1, :-1] = (f[:, :-1, 1:] * f[:, 1:, :-1]).sum(0)
        fy, fx = self.down[:, None], self.across[None]
        a, b, c, d = (1 - fy) * (1 - fx), (1 - fy) * fx, fy * (1 - fx), fy * fx

        def cell(table: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
            return table[rows][:, columns]

        t, u, le, r = self.top, self.bottom, self.left, self.right
        squares = a * a * cell(own, t, le) + b * b * cell(own, t, r) + c * c * cell(own, u, le) + d * d * cell(own, u, r)
        squares += 2 * (a * b * cell(right, t, le) + c * d * cell(right, u, le))
        squares += 2 * (a * c * cell(below, t, le) + b * d * cell(below, t, r))
        squares += 2 * (a * d * cell(falling, t, le) + b * c * cell(rising, t, le))
        return squares.clamp(min=0)

    def scores(self, vectors: Tensor, metric: str = 'cosine') -> Tensor:
        """How alike each of n vectors (n, C) and the feature at each pixel are: (n, H, W).

        ``'cosine'``, or ``'l2'``: minus the Euclidean distance.
        """
        if metric not in METRICS:
            raise ValueError(f'metric={metric!r} is unknown; allowed: {list(METRICS)}')
        vectors = vectors.to(self.features)
        products = self.resized(torch.einsum('nc,chw->nhw', vectors, self.features))
        if metric == 'cosine':
            return products / self.squares.sqrt().clamp(min=1e-12) / vectors.norm(dim=1).clamp(min=1e-12)[:, None, None]
        squares = vectors.square().sum(1)[:, None, None] - 2 * products + self.squares
        return -squares.clamp(min=0).sqrt()
