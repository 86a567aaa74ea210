"""Places worth matching, by OpenCV's detectors or on a grid, and those of two images that are each other's nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from .upsampled import UpsampledMap
from .vectors import mutual_nearest

DETECTORS = ('sift', 'orb', 'corners', 'grid')


def detect(image: np.ndarray, detector: str = 'sift', count: int = 1000) -> Tensor:
    """At most ``count`` places (n, 2), x and y, of an image (H, W, 3) uint8, the strongest first.

    ``'sift'`` (Lowe 2004), ``'orb'`` (Rublee et al. 2011), ``'corners'`` (Shi & Tomasi 1994), ``'grid'``: evenly spaced.

    Raises:
        ValueError: another detector, fewer than one place.
    """
    if detector not in DETECTORS or count < 1:
        raise ValueError(f'detector={detector!r}, count={count} do not fit; allowed: {list(DETECTORS)}, a count from 1')
    height, width = image.shape[:2]
    if detector == 'grid':
        step = max(1.0, (height * width / count) ** 0.5)
        y, x = np.arange(step / 2, height, step) - 0.5, np.arange(step / 2, width, step) - 0.5
        return torch.tensor([[b, a] for a in y for b in x], dtype=torch.float32).clamp(min=0)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if detector == 'corners':
        found = cv2.goodFeaturesToTrack(grey, count, 0.01, 3)
        return torch.from_numpy(found[:, 0].copy()) if found is not None else torch.zeros(0, 2)
    points = (cv2.SIFT_create(count) if detector == 'sift' else cv2.ORB_create(count)).detect(grey, None)
    points = sorted(points, key=lambda p: (-p.response, p.pt))
    # a place can be found several times, with several directions
    places = list(dict.fromkeys(p.pt for p in points))[:count]
    return torch.tensor(places, dtype=torch.float32).reshape(-1, 2)


@dataclass
class MatchedKeypoints:
    """Keypoints that are each other's nearest: places (n, 2) in both images, scores (n,)."""

    source: Tensor
    target: Tensor
    scores: Tensor


def match_keypoints(
    maps: Sequence[Tensor], points: Sequence[Tensor], sizes: Sequence[tuple[int, int]], metric: str = 'cosine'
) -> MatchedKeypoints:
    """Mutual nearest neighbours among the keypoints of two images, by their features.

    Args:
        maps: of both, (C, h, w).
        points: of both, (n, 2), x and y in pixels; features between pixels are interpolated.
        sizes: (H, W) of both.
    """
    vectors = [UpsampledMap(m, size).at(p.to(m.device)) for m, p, size in zip(maps, points, sizes)]
    pairs, scores = mutual_nearest(vectors[0], vectors[1], metric)
    pairs = pairs.cpu()
    return MatchedKeypoints(points[0][pairs[:, 0]], points[1][pairs[:, 1]], scores.cpu())
