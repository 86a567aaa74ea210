"""Grids of drawn images."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, sqrt

import cv2
import numpy as np
from torch import Tensor

from .canvas import contact_sheet


def to_pictures(images: Tensor) -> list[np.ndarray]:
    """Images (B, 3, H, W) in [-1, 1] as RGB arrays (H, W, 3) uint8."""
    # as diffusers' pipelines do: [-1, 1] -> [0, 1], times 255, rounded
    values = ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return list(values.permute(0, 2, 3, 1).cpu().numpy())


def sample_grid(
    images: Tensor, columns: int | None = None, row_titles: Sequence[str] | None = None, min_side: int = 96
) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1], row by row: (H, W, 3) uint8.

    Args:
        columns: default: about as many as rows.
        row_titles: one a row.
        min_side: small images are enlarged to at least this many pixels, by whole factors.
    """
    pictures = to_pictures(images)
    columns = columns or ceil(sqrt(len(pictures)))
    factor = max(1, ceil(min_side / min(pictures[0].shape[:2])))
    if factor > 1:
        pictures = [cv2.resize(p, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST) for p in pictures]
    rows: list[list[np.ndarray | None]] = [list(pictures[i : i + columns]) for i in range(0, len(pictures), columns)]
    return contact_sheet(rows, row_titles=row_titles, gap=4)
