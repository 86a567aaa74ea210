"""TimestepLoss: the pre-training loss on held-out images, by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric

from mmdiffrep.registry import METRICS


@METRICS.register_module()
class TimestepLoss(BaseMetric):
    """Means of the losses of a ``DenoisingPretrainer``: over all images, and over bands of timesteps.

    Reports ``timestep/loss``, and ``timestep/loss_<low>-<high>`` for each band that an image fell into.

    Args:
        bands: edges, in the schedule's own units (timesteps, or EDM's sigma), ascending; an image belongs to [low, high).
    """

    default_prefix = 'timestep'

    def __init__(self, bands: Sequence[float] = (0, 50, 100, 200, 400, 700, 1000), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(bands) < 2 or list(bands) != sorted(set(bands)):
            raise ValueError(f'bands={list(bands)} do not fit; allowed: at least two ascending edges, e.g. [0, 100, 1000]')
        self.bands = list(bands)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        self.results.extend((float(sample.get('t', 0)), float(sample['loss'])) for sample in data_samples)

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        t, losses = np.array(results, np.float64).T
        metrics = {'loss': float(losses.mean())}
        for low, high in zip(self.bands[:-1], self.bands[1:]):
            inside = (t >= low) & (t < high)
            if inside.any():
                metrics[f'loss_{low:g}-{high:g}'] = float(losses[inside].mean())
        return metrics
