"""Features of single pixels from maps that stay at their native size: what upsampling everything first would give there.

DDPM-Seg (Baranchuk et al., ICLR 2022) upsamples all maps of all images to the image's size, 103 GiB for 50 images at 256².
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def neighbours(
    places: Tensor, cells: int, side: float, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the two cells around each place, and the second one's weight, as ``F.interpolate`` takes them.

    Bilinear, ``align_corners=False``: pixel i of an image of ``side`` pixels has its centre at i + 0.5.

    Args:
        places: pixels (n,), whole numbers or between them.
        cells: the map's size.
        side: the size that the map would be resized to.
        dtype: of the weights.
    """
    centre = ((places.to(torch.float64) + 0.5) * (cells / side) - 0.5).clamp(0, cells - 1)
    first = centre.floor().long()
    return first, (first + 1).clamp(max=cells - 1), (centre - first).to(dtype)


def check_inside(y: Tensor, x: Tensor, size: tuple[int, int]) -> None:
    """ValueError for pixels outside an image of ``size`` (H, W)."""
    height, width = size
    if y.numel() and not (
        0 <= int(y.min()) <= int(y.max()) < height and 0 <= int(x.min()) <= int(x.max()) < width
    ):
        raise ValueError(
            f'pixels y {int(y.min())} … {int(y.max())}, x {int(x.min())} … {int(x.max())} were asked of an image of {height}×{width} '
            f'(height × width); allowed: y 0 … {height - 1}, x 0 … {width - 1}'
        )


@dataclass
class Corners:
    """The four cells of a map around each of n pixels, and how they are blended."""

    cells: Tensor  # (n, 4), of the map's rows × columns: top left, top right, bottom left, bottom right
    across: Tensor  # (n, 1), weight of the right ones
    down: Tensor  # (n, 1), weight of the bottom ones

    @classmethod
    def of(cls, y: Tensor, x: Tensor, size: tuple[int, int], rows: int, columns: int) -> Corners:
        top, bottom, down = neighbours(y, rows, size[0])
        left, right, across = neighbours(x, columns, size[1])
        cells = [
            top * columns + left, top * columns + right, bottom * columns + left, bottom * columns + right,
        ]  # fmt: skip
        return cls(torch.stack(cells, 1), across[:, None], down[:, None])

    def blend(self, found: Tensor) -> Tensor:
        """What stands in the cells, (n, 4, C) -> (n, C) float32."""
        a, b, c, d = found.float().unbind(1)
        return torch.lerp(
            torch.lerp(a, b, self.across), torch.lerp(c, d, self.across), self.down
        )


def sample_pixels(maps: Sequence[Tensor], y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """One image's features at pixels, (n, ΣC_k) float32: as ``F.interpolate(map, size)[..., y, x]`` of every map.

    Args:
        maps: of the image, each (h_k, w_k, C_k): channels last, so that a pixel's features lie together.
        y, x: pixels (n,), whole numbers in ``size``.
        size: (H, W) of the image, which each map covers.

    Raises:
        ValueError: a pixel outside the image.
    """
    return sample_images([maps], [size], torch.zeros(len(y), dtype=torch.long), y, x)


def sample_images(
    maps: Sequence[Sequence[Tensor]],
    sizes: Sequence[tuple[int, int]],
    image: Tensor,
    y: Tensor,
    x: Tensor,
    after: Callable[[], None] = lambda: None,
) -> Tensor:
    """Features at pixels (y, x) of images by number, all (n,) -> (n, ΣC_k) float32; see :func:`sample_pixels`.

    Images and maps are many and a batch's pixels few: what can be is done once for all images of a size, and each map is only
    picked from.

    Args:
        maps: of each image, (h_k, w_k, C_k) each, of the same numbers of channels in all images.
        sizes: (H, W) of each image.
        image, y, x: pixels (n,).
        after: called behind each image.
    """
    order = torch.argsort(image, stable=True)
    numbers, counts = torch.unique_consecutive(image[order], return_counts=True)
    y, x = y[order], x[order]
    begins = [0, *counts.cumsum(0).tolist()]
    spans = dict(zip(numbers.tolist(), zip(begins, begins[1:])))
    alike: dict[tuple, list[int]] = {}  # images whose pixels have the same neighbours
    for i in spans:
        check_inside(y[slice(*spans[i])], x[slice(*spans[i])], sizes[i])
        alike.setdefault((sizes[i], *(m.shape for m in maps[i])), []).append(i)
    found = torch.empty(len(y), sum(m.shape[-1] for m in maps[numbers[0]]))
    for (size, *shapes), same in alike.items():
        places = torch.cat([torch.arange(*spans[i]) for i in same])
        cells = {
            grid: Corners.of(y[places], x[places], size, *grid)
            for grid in {(rows, columns) for rows, columns, _ in shapes}
        }
        picked = [
            torch.empty(len(places), 4, channels, dtype=m.dtype)
            for m, (_, _, channels) in zip(maps[same[0]], shapes)
        ]
        begin = 0
        for i in same:
            end = begin + spans[i][1] - spans[i][0]
            for m, into in zip(maps[i], picked):
                rows, columns, channels = m.shape
                torch.index_select(
                    m.view(rows * columns, channels), 0,
                    cells[rows, columns].cells[begin:end].flatten(),
                    out=into[begin:end].view(-1, channels),
                )  # fmt: skip
            begin = end
            after()
        blended = [cells[tuple(shape[:2])].blend(four) for shape, four in zip(shapes, picked)]
        found[order[places]] = torch.cat(blended, 1)
    return found
