"""Homographies from matched points, by OpenCV, and their error at the image's corners (HPatches' measure)."""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

METHODS = {'lmeds': cv2.LMEDS, 'ransac': cv2.RANSAC, 'usac': cv2.USAC_MAGSAC}


def find_homography(source: Tensor, target: Tensor, method: str = 'lmeds', threshold: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """The homography (3, 3) from the source's to the target's points, (n, 2) each, x and y; which points agree (n,).

    Args:
        method: ``'lmeds'`` (least median of squares), ``'ransac'``, ``'usac'`` (MAGSAC++).
        threshold: pixels; not of LMedS.

    Raises:
        ValueError: fewer than four points, another method, or points that fix no homography.
    """
    if method not in METHODS:
        raise ValueError(f'method={method!r} is unknown; allowed: {list(METHODS)}')
    a, b = (np.asarray(points, np.float64).reshape(-1, 2) for points in (source, target))
    if len(a) != len(b) or len(a) < 4:
        raise ValueError(f'{len(a)} and {len(b)} matched points were given; a homography needs four pairs or more')
    cv2.setRNGSeed(0)  # the same answer each time
    found, inliers = cv2.findHomography(a, b, METHODS[method], threshold)
    if found is None:
        raise ValueError(f'{len(a)} matched points fix no homography: do they lie on a line?')
    return found, inliers.ravel().astype(bool)


def corner_error(found: np.ndarray, true: np.ndarray, size: tuple[int, int]) -> float:
    """Mean distance in pixels of an image's four corners under two homographies; ``size`` (H, W)."""
    height, width = size
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], float).T
    places = [(h @ corners)[:2] / (h @ corners)[2] for h in (np.asarray(found), np.asarray(true))]
    return float(np.linalg.norm(places[0] - places[1], axis=0).mean())
