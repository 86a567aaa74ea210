"""Class labels over pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def label_colours(
    labels: np.ndarray, palette: Sequence[Sequence[int]], ignore_colour: Sequence[int] = (0, 0, 0)
) -> np.ndarray:
    """Labels (H, W) as colours (H, W, 3) uint8; labels without a colour (255, ignored) get ``ignore_colour``."""
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f'labels must be whole numbers (H, W), got {labels.dtype} {labels.shape}')
    table = np.asarray([*palette, ignore_colour], np.uint8)
    known = (labels >= 0) & (labels < len(palette))
    return table[np.where(known, labels, len(palette))]


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Sequence[int]],
    opacity: float = 0.65,
    side: int | None = None,
    outline: bool = True,
) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB with its labels (H, W) laid over it in the palette's colours.

    Args:
        opacity: of the colours, 0 to 1. Where a label has no colour (ignored pixels) the picture stays as it is.
        side: enlarge (or shrink) the longer side to this many pixels first, so that outlines stay thin.
        outline: draw a dark line where two classes meet.

    Raises:
        ValueError: sizes differ, or an opacity outside 0…1.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(
            f'image {image.shape} and labels {labels.shape} must have one height and width'
        )
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity must be between 0 and 1, got {opacity}')
    labels = labels.astype(np.int32)
    if side is not None:
        scale = side / max(labels.shape)
        size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
        labels = cv2.resize(
            labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST
        ).astype(np.int32)
    known = ((labels >= 0) & (labels < len(palette)))[..., None]
    colours = label_colours(labels, palette).astype(np.float32)
    mixed = np.where(known, image * (1 - opacity) + colours * opacity, image)
    if outline:
        edge = np.zeros(labels.shape, bool)
        edge[1:] |= labels[1:] != labels[:-1]
        edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
        mixed = np.where(edge[..., None], mixed * 0.35, mixed)
    return mixed.round().clip(0, 255).astype(np.uint8)
