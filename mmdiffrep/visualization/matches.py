"""Pictures of correspondence: lines between two images, heat maps, features in shared colours. RGB arrays (H, W, 3) uint8."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor

from .canvas import PAPER, contact_sheet
from .features import pca_rgb


def point_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours that lie far apart, the first always the same."""
    return [
        tuple(round(255 * c) for c in colorsys.hsv_to_rgb((0.61803 * k + 0.02) % 1, 0.85, 1.0))  # type: ignore[misc]
        for k in range(count)
    ]


def enlarged(image: np.ndarray, side: int) -> tuple[np.ndarray, float]:
    """The image with a longer side of ``side`` pixels, and by what it was multiplied."""
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC), scale


def draw_matches(
    source: np.ndarray,
    target: np.ndarray,
    points: Sequence[Sequence[float]],
    found: Sequence[Sequence[float]],
    true: Sequence[Sequence[float]] | None = None,
    side: int = 512,
    lines: bool = True,
    right: Sequence[bool] | None = None,
) -> np.ndarray:
    """Two images side by side with points and what was found for them.

    Args:
        source, target: RGB (H, W, 3) uint8.
        points, found: (n, 2), x and y in each image's pixels.
        true: where the points really lie in the target: drawn as crosses.
        side: of the images' longer sides on the picture.
        lines: join the points.
        right: green lines and red ones, instead of a colour for each point.

    Raises:
        ValueError: other numbers of points.
    """
    if len(points) != len(found) or (true is not None and len(true) != len(points)):
        raise ValueError(f'{len(points)} points, {len(found)} found and {len(true or points)} true ones were given: the same number is needed')
    (a, scale_a), (b, scale_b) = enlarged(source, side), enlarged(target, side)
    gap = max(8, side // 40)
    height = max(a.shape[0], b.shape[0])
    sheet = np.full((height, a.shape[1] + gap + b.shape[1], 3), PAPER, np.uint8)
    sheet[: a.shape[0], : a.shape[1]] = a
    sheet[: b.shape[0], a.shape[1] + gap :] = b
    shift = np.array([a.shape[1] + gap, 0.0])
    starts = _places(points, scale_a)
    ends = _places(found, scale_b) + shift
    colours = point_colours(len(points))
    if right is not None:
        colours = [(40, 200, 80) if good else (230, 50, 40) for good in right]
    thick, radius = max(1, side // 320), max(3, side // 90)
    if lines:
        over = sheet.copy()
        for p, q, colour in zip(starts, ends, colours):
            cv2.line(over, _pixel(p), _pixel(q), colour, thick, cv2.LINE_AA)
        sheet = cv2.addWeighted(over, 0.75, sheet, 0.25, 0)
    for p, q, colour in zip(starts, ends, colours):
        for place in (p, q):
            cv2.circle(sheet, _pixel(place), radius + thick, (0, 0, 0), -1, cv2.LINE_AA)
            cv2.circle(sheet, _pixel(place), radius, colour, -1, cv2.LINE_AA)
    for q, colour in zip(_places(true, scale_b) + shift if true is not None else [], colours):
        cv2.drawMarker(sheet, _pixel(q), (0, 0, 0), cv2.MARKER_TILTED_CROSS, 3 * radius, 3 * thick, cv2.LINE_AA)
        cv2.drawMarker(sheet, _pixel(q), colour, cv2.MARKER_TILTED_CROSS, 3 * radius, thick, cv2.LINE_AA)
    return sheet


def draw_heat(
    image: np.ndarray, scores: np.ndarray, place: Sequence[float] | None = None, side: int = 512, opacity: float = 0.6
) -> np.ndarray:
    """Scores (H, W) over their image, from the lowest to the highest, and a mark at a place (x, y)."""
    if scores.shape != image.shape[:2]:
        raise ValueError(f'scores {scores.shape} and image {image.shape} must have one height and width')
    large, scale = enlarged(image, side)
    low, high = float(scores.min()), float(scores.max())
    shown = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    shown = cv2.resize(shown.astype(np.float32), (large.shape[1], large.shape[0]), interpolation=cv2.INTER_LINEAR)
    heat = colormaps['inferno'](shown)[..., :3] * 255
    sheet = (large * (1 - opacity) + heat * opacity).round().clip(0, 255).astype(np.uint8)
    if place is not None:
        at = _pixel(_places([place], scale)[0])
        size = max(10, side // 24)
        cv2.drawMarker(sheet, at, (0, 0, 0), cv2.MARKER_CROSS, size, max(3, side // 100), cv2.LINE_AA)
        cv2.drawMarker(sheet, at, (80, 255, 255), cv2.MARKER_CROSS, size, max(1, side // 300), cv2.LINE_AA)
    return sheet


def draw_flow(source: np.ndarray, target: np.ndarray, flow: np.ndarray, side: int = 512) -> np.ndarray:
    """Source, target, and the target's colours carried to where the source has their like, by a flow (2, H, W) in the target's pixels.

    A place of the source is scaled to the target's size before the flow is added, as :meth:`mmdiffrep.apis.Matcher.flow` gives it.
    """
    if flow.shape != (2, *source.shape[:2]):
        raise ValueError(f'flow {flow.shape} and source {source.shape} do not fit; allowed: (2, H, W)')
    (height, width), (h, w) = source.shape[:2], target.shape[:2]
    x = (np.arange(width) + 0.5) * w / width - 0.5 + flow[0]
    y = ((np.arange(height) + 0.5) * h / height - 0.5)[:, None] + flow[1]
    carried = cv2.remap(target, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    pictures = [enlarged(image, side)[0] for image in (source, target, carried)]
    return contact_sheet([pictures], ['source', 'target', 'target, carried to the source'], text_size=9)


def pair_colours(images: Sequence[np.ndarray], maps: Sequence[Tensor], side: int = 256) -> np.ndarray:
    """Images over their features' principal components, which the pair shares: what has one colour is alike. Maps are (C, h, w)."""
    channels = {int(m.shape[0]) for m in maps}
    if len(channels) > 1:
        raise ValueError(f'maps of {sorted(channels)} channels were given: they must come from the same taps')
    # as one long map, so that components and stretch are shared though sizes differ
    joined = pca_rgb(_row(maps))[0, 0]
    rows, start = [], 0
    for image, m in zip(images, maps):
        height, width = m.shape[-2:]
        colours = joined[start : start + height * width].reshape(height, width, 3)
        start += height * width
        large, _ = enlarged(image, side)
        size = (large.shape[1], large.shape[0])
        rows.append([large, cv2.resize(colours, size, interpolation=cv2.INTER_NEAREST)])
    return contact_sheet([list(column) for column in zip(*rows)])


def _row(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([m.flatten(1) for m in maps], 1)[None, :, None]


def _places(points: Sequence[Sequence[float]] | None, scale: float) -> np.ndarray:
    """Points in pixels of an enlarged image, whose pixel centres are at whole numbers."""
    return (np.asarray(points, float).reshape(-1, 2) + 0.5) * scale - 0.5


def _pixel(place: np.ndarray) -> tuple[int, int]:
    return round(float(place[0])), round(float(place[1]))
