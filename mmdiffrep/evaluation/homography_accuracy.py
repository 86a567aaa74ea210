"""Homography accuracy: how many pairs' homographies put the image's corners near enough (HPatches)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmdiffrep.matching.homography import corner_error
from mmdiffrep.registry import METRICS


@METRICS.register_module()
class HomographyAccuracy(BaseMetric):
    """Percent of pairs whose mean corner error is at most each of ``thresholds`` pixels, over all pairs and by kind.

    Named ``homography/corners<=3px`` and ``homography/viewpoint/corners<=3px``. A pair without a homography is wrong.

    Args:
        thresholds: in pixels of the images as the data set gives them.
        collect_device, prefix: mmengine's.
    """

    default_prefix = 'homography'

    def __init__(self, thresholds: Sequence[float] = (1, 3, 5), collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if not thresholds or min(thresholds) <= 0:
            raise ValueError(f'thresholds={list(thresholds)} do not fit; allowed: one or more, above 0')
        self.thresholds = list(thresholds)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            found, true = sample['pred_homography'], sample['homography']
            error = np.inf if found is None else corner_error(found, true, tuple(sample['source_shape']))
            self.results.append((sample.get('kind'), float(error), len(sample['pred_scores'])))

    def compute_metrics(self, results: list[tuple[str | None, float, int]]) -> dict[str, float]:
        groups = {'': results, **{f'{kind}/': [r for r in results if r[0] == kind] for kind in sorted({r[0] for r in results if r[0]})}}
        found: dict[str, float] = {}
        for name, rows in groups.items():
            errors = np.array([error for _, error, _ in rows])
            for limit in self.thresholds:
                found[f'{name}corners<={limit:g}px'] = 100 * float((errors <= limit).mean())
        found['matches'] = float(np.mean([count for _, _, count in results]))
        return found
