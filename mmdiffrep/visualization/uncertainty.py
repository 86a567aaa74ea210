"""How uncertain a segmentation is: a map in colours with its scale, and a sheet with image, labels and prediction."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .canvas import INK, PAPER, contact_sheet, legend, text_picture
from .overlays import overlay

SIDES = (
    320,
    640,
)  # pixels of a panel's longer side: letters need some, and four panels stand side by side
COLOURS = 'inferno'  # of matplotlib: dark is certain; even in grey, and for colour-blind people


def uncertainty_map(values: np.ndarray, top: float | None = None) -> np.ndarray:
    """Uncertainty (H, W) from 0 up in colours, dark to bright: (H, W, 3) uint8.

    Args:
        top: what is shown brightest, as everything above; None: the largest value.

    Raises:
        ValueError: another shape, a value that is negative or not finite, or a top that is not positive.
    """
    values = _checked(values, top)
    return _colours(values / _top(values, top))


def draw_uncertainty(
    image: np.ndarray,
    labels: np.ndarray,
    uncertainty: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    truth: np.ndarray | None = None,
    top: float | None = None,
    side: int | None = None,
    image_uncertainty: float | None = None,
) -> np.ndarray:
    """An image, its labels where they are known, the prediction and its uncertainty side by side, with both keys: (h, w, 3) uint8.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: predicted, (H, W).
        uncertainty: of each pixel in nats, (H, W).
        truth: labels (H, W); pixels that are no class (ignored) stay as they are.
        top: see :func:`uncertainty_map`. Give one to compare pictures.
        side: of a panel's longer side; default: the image's, but between 320 and 640.
        image_uncertainty: written beside the scale.

    Raises:
        ValueError: sizes differ, or see :func:`uncertainty_map`.
    """
    uncertainty = _checked(uncertainty, top)
    if uncertainty.shape != image.shape[:2]:
        raise ValueError(
            f'the uncertainty is {uncertainty.shape} and the image {image.shape}; both need one height and width'
        )
    side = side or int(np.clip(max(image.shape[:2]), *SIDES))
    scale = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    # not interpolated: what one sees are the pixels
    heat = cv2.resize(uncertainty_map(uncertainty, top), size, interpolation=cv2.INTER_NEAREST)
    panels = [('image', cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))]
    if truth is not None:
        panels.append(('labels', overlay(image, truth, palette, side=side)))
    panels += [('prediction', overlay(image, labels, palette, side=side)), ('uncertainty', heat)]
    width = sum(picture.shape[1] for _, picture in panels) + 8 * (len(panels) - 1)
    present = np.unique(np.concatenate([labels.ravel(), [] if truth is None else truth.ravel()]))
    places = [int(k) for k in present if 0 <= k < len(classes)]
    lines = [
        legend([classes[k] for k in places], [palette[k] for k in places], width),
        uncertainty_scale(_top(uncertainty, top), min(width, 460), image_uncertainty),
    ]
    footer = _below(lines)
    return contact_sheet([[p for _, p in panels]], [name for name, _ in panels], footer=footer)


def uncertainty_scale(top: float, width: int, image_uncertainty: float | None = None) -> np.ndarray:
    """The colours of 0 to ``top`` with numbers below, and what they mean: (h, w, 3) uint8, at least ``width`` wide."""
    title = 'uncertainty of a pixel, nats'
    if image_uncertainty is not None:
        title += f'; of the image: {image_uncertainty:.3g}'
    ramp = np.repeat(np.linspace(0, 1, width)[None], 16, axis=0)
    numbers = [text_picture(f'{part * top:.2g}', 10) for part in (0, 0.5, 1)]
    ticks = np.full((max(n.shape[0] for n in numbers) + 2, width, 3), PAPER, np.uint8)
    for part, number in zip((0, 0.5, 1), numbers):
        left = round(part * (width - number.shape[1]))
        ticks[2 : 2 + number.shape[0], left : left + number.shape[1]] = number
    bar = _colours(ramp)
    bar[[0, -1]] = bar[:, [0, -1]] = INK
    return _below([text_picture(title), bar, ticks], gap=2)


def _checked(values: np.ndarray, top: float | None) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not values.size:
        raise ValueError(f'uncertainty must be (H, W), got {values.shape}')
    # rounding leaves tiny negative numbers where all members agree
    if not np.isfinite(values).all() or values.min() < -1e-4:
        raise ValueError(
            f'uncertainty is between {values.min()} and {values.max()}; needed: finite values from 0 up'
        )
    if top is not None and not top > 0:
        raise ValueError(f'top={top} does not fit; allowed: above 0')
    return values.clip(min=0)


def _top(values: np.ndarray, top: float | None) -> float:
    # of what is certain everywhere the scale may be any
    return top or float(values.max()) or 1.0


def _colours(shares: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    drawn: np.ndarray = colormaps[COLOURS](shares.clip(0, 1))[..., :3]
    return (drawn * 255).round().astype(np.uint8)


def _below(parts: Sequence[np.ndarray], gap: int = 10) -> np.ndarray:
    """Pictures one below the other, flush left."""
    width = max(part.shape[1] for part in parts)
    rows = [
        cv2.copyMakeBorder(
            part, 0, 0 if part is parts[-1] else gap, 0, width - part.shape[1], cv2.BORDER_CONSTANT, value=PAPER
        )
        for part in parts
    ]  # fmt: skip
    return np.concatenate(rows)
