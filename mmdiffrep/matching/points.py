"""Points of one image found in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .upsampled import UpsampledMap
from .vectors import nearest

PIXELS = 2**24  # scores at once: 128 MiB


@dataclass
class Matches:
    """``points`` (n, 2), x and y in the target's pixels; ``scores`` (n,); ``flipped``: the source was mirrored to find them."""

    points: Tensor
    scores: Tensor
    flipped: bool = False


def match_points(
    source: Tensor,
    target: Tensor,
    points: Tensor,
    source_size: tuple[int, int],
    target_size: tuple[int, int],
    metric: str = 'cosine',
    window: int | None = None,
    temperature: float = 0.02,
) -> Matches:
    """Where each point of the source lies in the target: the most alike of the target's pixels.

    The same answer as resizing both maps bilinearly to their images and comparing there (DIFT, section 4.1).

    Args:
        source, target: maps (C, h, w), (C, h', w') that cover their images.
        points: (n, 2), x and y in the source's pixels, the first pixel's centre at 0.
        source_size, target_size: (height, width) of the images in whose pixels points are given and answered.
        metric: ``'cosine'`` or ``'l2'``.
        window: None: the pixel itself; a radius in pixels: the mean place around it, weighted by softmax(score / temperature).

    Raises:
        ValueError: no points, points outside the source, maps of different channels.
    """
    points = check_points(points, source_size)
    if source.shape[0] != target.shape[0]:
        raise ValueError(
            f'the source\'s map has {source.shape[0]} channels, the target\'s {target.shape[0]}: both must come from the same taps'
        )
    vectors = UpsampledMap(source, source_size).at(points)
    upsampled = UpsampledMap(target, target_size)
    height, width = upsampled.size
    places, best = [], []
    for some in vectors.split(max(1, PIXELS // (height * width))):
        scores = upsampled.scores(some, metric)
        top = scores.flatten(1).max(1)
        place = torch.stack([top.indices % width, top.indices // width], 1).float()
        places.append(place if window is None else soft_argmax(scores, place, window, temperature))
        best.append(top.values)
    return Matches(torch.cat(places).float(), torch.cat(best).float())


def soft_argmax(scores: Tensor, centres: Tensor, window: int, temperature: float) -> Tensor:
    """Mean place (n, 2) in squares of 2·window + 1 pixels around centres (n, 2), weighted by softmax(scores / temperature).

    Pixels outside the image have no weight.
    """
    if window < 0 or temperature <= 0:
        raise ValueError(f'window={window}, temperature={temperature} do not fit; allowed: window from 0, temperature above 0')
    height, width = scores.shape[-2:]
    steps = torch.arange(-window, window + 1, device=scores.device)
    x = centres[:, 0].long()[:, None, None] + steps[None, None, :]
    y = centres[:, 1].long()[:, None, None] + steps[None, :, None]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = torch.broadcast_tensors(x.clamp(0, width - 1), y.clamp(0, height - 1))
    rows = torch.arange(len(scores), device=scores.device)[:, None, None]
    around = torch.where(inside, scores[rows, y, x] / temperature, torch.tensor(-torch.inf, device=scores.device))
    weights = around.flatten(1).softmax(1).view_as(around)
    return torch.stack([(weights * x).sum((1, 2)), (weights * y).sum((1, 2))], 1)


def check_points(points: Tensor | Sequence[Sequence[float]], size: tuple[int, int]) -> Tensor:
    """Points as (n, 2) float; ValueError for none, or for points outside an image of (H, W)."""
    found = torch.as_tensor(points, dtype=torch.float32)
    if found.dim() != 2 or found.shape[1] != 2 or not len(found):
        raise ValueError(f'points of shape {tuple(found.shape)} were given; allowed: (n, 2), x and y, one point or more')
    height, width = size
    outside = (found < -0.5) | (found > found.new_tensor([width - 0.5, height - 0.5])) | ~found.isfinite()
    if outside.any():
        first = found[outside.any(1)][0].tolist()
        raise ValueError(
            f'point x, y = {first} lies outside the image of {width}×{height} (width × height); allowed: x 0 … {width - 1}, y 0 … {height - 1}'
        )
    return found


def flip_adaptive(
    source: Tensor, mirrored: Tensor, target: Tensor, points: Tensor, source_size: tuple[int, int], target_size: tuple[int, int], **kwargs: object
) -> Matches:
    """:func:`match_points` with the source or its mirror image, whichever's points are more alike in the mean.

    Args:
        mirrored: the map of the mirrored source, as the network gives it.

    After "Telling Left from Right" (Zhang et al., CVPR 2024), section 3.2, which decides by masks; here by the points' scores.
    """
    plain = match_points(source, target, points, source_size, target_size, **kwargs)  # type: ignore[arg-type]
    there = check_points(points, source_size) * torch.tensor([-1.0, 1.0]) + torch.tensor([source_size[1] - 1.0, 0.0])
    other = match_points(mirrored, target, there, source_size, target_size, **kwargs)  # type: ignore[arg-type]
    if other.scores.mean() > plain.scores.mean():
        return Matches(other.points, other.scores, flipped=True)
    return plain


def match_maps(
    maps: Sequence[Tensor], points: Tensor, sizes: Sequence[tuple[int, int]], **kwargs: object
) -> Matches:
    """:func:`match_points` with the maps of source and target, or :func:`flip_adaptive` with the mirrored source's as the third.

    Args:
        sizes: of source and target.
    """
    source, target, *mirrored = maps
    if mirrored:
        return flip_adaptive(source, mirrored[0], target, points, *sizes, **kwargs)
    return match_points(source, target, points, *sizes, **kwargs)  # type: ignore[arg-type]


def dense_flow(source: Tensor, target: Tensor, metric: str = 'cosine') -> tuple[Tensor, Tensor]:
    """For each cell of the source (C, h, w) the most alike cell of the target (C, h', w').

    Returns:
        flow (2, h, w): by how much x and y grow, as shares of the image's width and height (resize the flow, then multiply by the
        size in pixels); score (h, w).
    """
    rows, columns = target.shape[1:]
    h, w = source.shape[1:]
    best, scores = nearest(source.flatten(1).t(), target.flatten(1).t(), metric)
    x = (best % columns + 0.5) / columns - (torch.arange(w, device=best.device) + 0.5).repeat(h) / w
    y = (best // columns + 0.5) / rows - (torch.arange(h, device=best.device) + 0.5).repeat_interleave(w) / h
    return torch.stack([x, y]).view(2, h, w), scores.view(h, w)
