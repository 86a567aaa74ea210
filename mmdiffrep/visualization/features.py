"""Feature maps as colours: their first three principal components as red, green and blue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from torch import Tensor

from mmdiffrep.matching.components import principal_components

from .canvas import contact_sheet

GREY = 0.5  # of a component that does not vary


def pca_rgb(maps: Tensor, shared: bool = True, spread: float = 1.0) -> np.ndarray:
    """Feature maps (B, C, h, w) as colours (B, h, w, 3) uint8.

    Each component is stretched so that all but ``spread`` percent of its values at either end fit into 0…255.

    Args:
        shared: the same components and stretch for the whole batch, so that a colour means the same in all its pictures.
    """
    if maps.dim() != 4:
        raise ValueError(f'maps must be (B, C, h, w), got {tuple(maps.shape)}')
    if not shared:
        return np.concatenate([pca_rgb(one[None], True, spread) for one in maps])
    batch, channels, height, width = maps.shape
    samples = maps.detach().double().cpu().permute(0, 2, 3, 1).reshape(-1, channels)
    mean, components, variances = principal_components(samples)
    scores = ((samples - mean) @ components.T).numpy()  # (N, k)
    low, high = np.percentile(scores, [spread, 100 - spread], axis=0)
    # what is only rounding error is not stretched to a picture
    varies = (variances > 1e-12 * max(float(variances.max()), 1e-30)).numpy() & (high > low)
    rgb = np.full((len(scores), 3), GREY)
    stretched = (scores - low) / np.where(high > low, high - low, 1)
    rgb[:, : len(components)][:, varies] = stretched[:, varies]
    return (rgb.clip(0, 1) * 255).round().astype(np.uint8).reshape(batch, height, width, 3)


def feature_sheet(
    images: np.ndarray | Sequence[np.ndarray],
    maps: Mapping[str, Tensor],
    strides: Mapping[str, float] | None = None,
    row_titles: Sequence[str] | None = None,
    title: str = '',
    side: int = 160,
    shared: bool = True,
) -> np.ndarray:
    """A contact sheet: one row an image, first the image, then every tap's principal components.

    Args:
        images: RGB, (B, H, W, 3) uint8.
        maps: tap name -> (B, C, h, w).
        strides: tap name -> image pixels per feature pixel; by default from the maps' heights.
        side: pixels of an image's longer side on the sheet. Feature pixels stay square blocks.
        shared: see :func:`pca_rgb`.
    """
    height, width = images[0].shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = [[cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) for image in images]]
    heads = [f'image\n{height}×{width}']
    for name, value in maps.items():
        if len(value) != len(images):
            raise ValueError(f'tap {name!r} has {len(value)} maps for {len(images)} images')
        stride = (strides or {}).get(name, height / value.shape[2])
        pictures = pca_rgb(value, shared)
        columns.append([cv2.resize(p, size, interpolation=cv2.INTER_NEAREST) for p in pictures])
        heads.append(
            f'{_broken(name)}\n{value.shape[1]} channels, stride {stride:g}\n{value.shape[2]}×{value.shape[3]}'
        )
    return contact_sheet(list(zip(*columns)), heads, row_titles, title, text_size=9)


def _broken(name: str, limit: int = 20) -> str:
    """A long tap name over several lines, broken at its dots, numbers kept with their module lists."""
    lines = ['']
    for part in re.split(r'(?<=\.)(?=\D)', name):
        if lines[-1] and len(lines[-1]) + len(part) > limit:
            lines.append('')
        lines[-1] += part
    return '\n'.join(lines)
