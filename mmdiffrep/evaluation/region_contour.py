"""J and F: how well regions and contours of a video's objects are found (DAVIS)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from mmdiffrep.datasets.davis import read_mask
from mmdiffrep.registry import METRICS
from mmdiffrep.utils.taps import format_table


@METRICS.register_module()
class RegionAndContour(BaseMetric):
    """J (intersection over union), F (contour's F-measure) and their mean, in percent: the mean over all videos' objects of the mean over
    their frames, without the first, which is given, and the last, as DAVIS 2017 does (Perazzi et al., CVPR 2016; Pont-Tuset et al. 2017).

    Args:
        tolerance: how far contours may lie apart, as a share of the frame's diagonal.
        collect_device, prefix: mmengine's.
    """

    default_prefix = 'davis'

    def __init__(self, tolerance: float = 0.008, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if tolerance <= 0:
            raise ValueError(f'tolerance={tolerance} does not fit; allowed: above 0')
        self.tolerance = tolerance

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            true = [read_mask(path) for path in sample['masks']]
            found = sample['pred_masks']
            if len(found) != len(true):
                raise ValueError(f"video {sample['video']!r} has {len(true)} frames, and {len(found)} were predicted")
            objects = [int(k) for k in np.unique(true[0]) if k not in (0, 255)]
            frames = range(1, len(true) - 1) if len(true) > 2 else range(1, len(true))
            for k in objects:
                j = [region(found[i] == k, true[i] == k, true[i] == 255) for i in frames]
                f = [contour(found[i] == k, true[i] == k, true[i] == 255, self.tolerance) for i in frames]
                self.results.append((sample['video'], float(np.mean(j)), float(np.mean(f))))

    def compute_metrics(self, results: list[tuple[str, float, float]]) -> dict[str, float]:
        if not results:
            raise ValueError('no object was to be followed: the first frames of all videos are empty')
        rows = []
        for video in sorted({r[0] for r in results}):
            values = np.array([r[1:] for r in results if r[0] == video])
            rows.append([video, str(len(values)), *(f'{100 * v:.1f}' for v in values.mean(0))])
        print_log('J and F\n' + format_table(['video', 'objects', 'J', 'F'], rows), MMLogger.get_current_instance())
        j, f = (100 * float(np.mean([r[k] for r in results])) for k in (1, 2))
        return {'J': j, 'F': f, 'J&F': (j + f) / 2}


def region(found: np.ndarray, true: np.ndarray, void: np.ndarray | None = None) -> float:
    """Intersection over union of masks (H, W); 1 where both are empty. Void pixels do not count."""
    inside = np.ones_like(true) if void is None else ~void
    union = ((found | true) & inside).sum()
    return float((found & true & inside).sum() / union) if union else 1.0


def contour(found: np.ndarray, true: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008) -> float:
    """F-measure of the masks' contours, which agree where they are no farther apart than the tolerance."""
    inside = np.ones_like(true) if void is None else ~void
    a, b = (edges(mask & inside) for mask in (found, true))
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    radius = int(np.ceil(tolerance * np.linalg.norm(true.shape)))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (x**2 + y**2 <= radius**2).astype(np.uint8)
    near_a, near_b = (cv2.dilate(e.astype(np.uint8), disk).astype(bool) for e in (a, b))
    precision, recall = (a & near_b).sum() / a.sum(), (b & near_a).sum() / b.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def edges(mask: np.ndarray) -> np.ndarray:
    """Pixels (H, W) that differ from the next one to the right, below, or to the lower right."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode='edge')
    return (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
