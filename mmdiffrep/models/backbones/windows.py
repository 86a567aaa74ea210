"""Square windows over an image: what a network made for one size sees of an image of any size.

ODISE (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..adapters.base import map_size


@dataclass(frozen=True)
class Windows:
    """Windows of min(``size``, short side) pixels, each resized to ``size`` (bicubic), looked at in batches.

    They stand side by side from the top left; the last of a row or column is shifted in at the border and overlaps the one before
    it. Padding is seen as part of the image.

    Args:
        size: side in pixels of what the network sees. It suits it best as a multiple of its divisor.
        batch: windows in one pass, of all images together; a limit on memory, which changes nothing else.
    """

    size: int = 512
    batch: int = 8

    def __post_init__(self) -> None:
        for name, value in (('size', self.size), ('batch', self.batch)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f'windows: {name}={value!r}; allowed: a whole number of at least 1'
                )

    def layout(self, image_size: tuple[int, int]) -> tuple[int, list[int], list[int]]:
        """Side of a window, and where windows begin on y and on x, in pixels of the image (H, W)."""
        side = min(self.size, *image_size)
        tops, lefts = ([*range(0, n - side, side), n - side] for n in image_size)
        return side, tops, lefts

    def crops(self, rgb: Tensor) -> Tensor:
        """Images (B, C, H, W) -> windows as they are in them (B·N, C, s, s): image by image, row by row."""
        side, tops, lefts = self.layout(tuple(rgb.shape[-2:]))
        found = [rgb[..., y : y + side, x : x + side] for y in tops for x in lefts]
        return torch.stack(found, dim=1).flatten(0, 1)

    def resize(self, crops: Tensor) -> Tensor:
        """Windows (n, C, s, s) in [-1, 1] -> (n, C, size, size) in [-1, 1]."""
        if crops.shape[-1] == self.size:
            return crops
        size = (self.size, self.size)
        # bicubic interpolation overshoots at edges
        return F.interpolate(crops, size, mode='bicubic', align_corners=False).clamp(-1, 1)

    def batches(self, rgb: Tensor) -> Iterator[tuple[Tensor, list[int]]]:
        """Windows (n <= batch, C, s, s) not yet resized, and the number of each one's image."""
        crops = self.crops(rgb)
        each = len(crops) // len(rgb)
        for start in range(0, len(crops), self.batch):
            chunk = crops[start : start + self.batch]
            yield chunk, [(start + k) // each for k in range(len(chunk))]

    def __call__(
        self,
        rgb: Tensor,
        look: Callable[[Tensor, list[int]], Sequence[Tensor]],
        strides: Sequence[float],
    ) -> tuple[Tensor, ...]:
        """``look(windows, image numbers)`` -> maps at ``strides`` of resized windows; stitched: (B, C_k, ceil(H/s_k), ceil(W/s_k)).

        Strides of the returned maps are in pixels of the image.
        """
        parts = [look(crops, images) for crops, images in self.batches(rgb)]
        size = tuple(rgb.shape[-2:])
        return tuple(
            self.stitch(torch.cat(maps), stride, size) for maps, stride in zip(zip(*parts), strides)
        )

    def stitch(self, maps: Tensor, stride: float, image_size: tuple[int, int]) -> Tensor:
        """Maps of all windows (B·N, C, m, m) -> (B, C, ceil(H/stride), ceil(W/stride)), averaged where windows overlap.

        A cell of the stitched map is the mean over the windows that its centre is in; of a window it takes what is at its place,
        interpolated linearly, and averaged over the cell where the window's map is finer.
        """
        side, *starts = self.layout(image_size)
        rows, columns = (len(places) for places in starts)
        channels, *cells = maps.shape[1:]
        grid = maps.unflatten(0, (-1, rows, columns))  # (B, rows, columns, C, m, m)
        whole = grid.permute(0, 3, 1, 4, 2, 5).reshape(
            -1, channels, rows * cells[0], columns * cells[1]
        )
        for k, wanted in enumerate(map_size(image_size, stride)):
            weights = axis_weights(image_size[k], wanted, starts[k], side, cells[k])
            whole = _gather(whole, weights, dim=k - 2)
        return whole


def axis_weights(
    length: int, wanted: int, starts: Sequence[int], side: int, cells: int
) -> list[dict[int, float]]:
    """Along one axis: for each of the ``wanted`` cells over ``length`` pixels, the weights of what it is made from.

    Windows of ``side`` pixels begin at ``starts``; each has ``cells`` cells, numbered through from the first window's.
    """
    pixel = side / cells  # of a window's cell
    step = length / wanted
    reach = max(step / pixel, 1) / 2  # in cells of the window: half of what is averaged
    found = []
    for i in range(wanted):
        centre = (i + 0.5) * step
        inside = [k for k, start in enumerate(starts) if start <= centre < start + side]
        weights: dict[int, float] = {}
        for k in inside:
            middle = (centre - starts[k]) / pixel
            low, high = max(middle - reach, 0.0), min(middle + reach, float(cells))
            for j in range(math.floor(low), min(math.ceil(high), cells)):
                # rounded, so that a cell that fits is taken as it is
                share = round((min(high, j + 1) - max(low, j)) / (high - low), 9)
                if share:
                    weights[k * cells + j] = share / len(inside)
        found.append(weights)
    return found


def _gather(x: Tensor, weights: Sequence[dict[int, float]], dim: int) -> Tensor:
    """Along ``dim``: entry i is the sum of the entries j times ``weights[i][j]``."""
    if [list(row.items()) for row in weights] == [[(i, 1.0)] for i in range(x.shape[dim])]:
        return x
    most = max(len(row) for row in weights)
    rows = [[*row.items(), *[(0, 0.0)] * (most - len(row))] for row in weights]
    index = torch.tensor([[j for j, _ in row] for row in rows], device=x.device)
    weight = torch.tensor([[w for _, w in row] for row in rows], device=x.device, dtype=x.dtype)
    shape = (-1,) + (1,) * (-dim - 1)
    total = x.index_select(dim, index[:, 0]) * weight[:, 0].view(shape)
    for k in range(1, most):
        total = total + x.index_select(dim, index[:, k]) * weight[:, k].view(shape)
    return total
