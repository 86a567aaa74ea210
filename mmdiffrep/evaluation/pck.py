"""PCK: the share of points that are found near enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log

from mmdiffrep.registry import METRICS
from mmdiffrep.utils.taps import format_table


@METRICS.register_module()
class PCK(BaseMetric):
    """Percentage of correct keypoints, in every variant that is asked for, each under a name of its own.

    A point is correct if its distance to the truth is at most α · max(height, width) of the target's box, or of its image. Named
    ``pck/box-per-point@0.1``: per point, all points of all pairs together; per image, the mean of the pairs' shares; per category, the
    mean of the categories' values (``box-per-point-category@0.1``), where pairs have one. The variants differ by several points on SPair-71k.

    Args:
        alphas: thresholds.
        by: ``'box'``, ``'image'`` or both.
        per: ``'point'``, ``'image'`` or both.
        strict: a distance equal to the threshold is wrong (``<`` for ``≤``), as in some code; named ``box-per-point<0.1``.
        collect_device, prefix: mmengine's.

    Raises:
        ValueError: other variants; a pair without a box.
    """

    default_prefix = 'pck'

    def __init__(
        self,
        alphas: Sequence[float] = (0.1,),
        by: Sequence[str] | str = 'box',
        per: Sequence[str] | str = ('point', 'image'),
        strict: bool = False,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.alphas = list(alphas)
        self.by, self.per = ([value] if isinstance(value, str) else list(value) for value in (by, per))
        if not self.alphas or min(self.alphas) <= 0 or not set(self.by) <= {'box', 'image'} or not set(self.per) <= {'point', 'image'}:
            raise ValueError(
                f"alphas={self.alphas}, by={self.by}, per={self.per} do not fit; allowed: alphas above 0, by 'box' or 'image', per 'point' or 'image'"
            )
        self.strict = strict

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Each pair's distances, the lengths that they are measured by, and its category."""
        for sample in data_samples:
            distances = np.linalg.norm(
                np.asarray(sample['pred_points'].cpu(), np.float64) - np.asarray(sample['target_points'].cpu(), np.float64), axis=1
            )
            lengths = {'image': float(max(sample['target_shape']))}
            box = sample.get('target_box')
            if 'box' in self.by:
                if box is None:
                    raise ValueError(
                        f"{sample.get('target_path', 'a pair')} has no target_box, and PCK is asked for by box: give boxes, or by='image'"
                    )
                lengths['box'] = float(max(box[2] - box[0], box[3] - box[1]))
            self.results.append((distances, lengths, sample.get('category')))

    def compute_metrics(self, results: list[tuple[np.ndarray, dict[str, float], str | None]]) -> dict[str, float]:
        found: dict[str, float] = {}
        numbers = {k: [i for i, (_, _, c) in enumerate(results) if c == k] for k in sorted({c for _, _, c in results if c})}
        table: dict[str, list[float]] = {}  # variant -> each category's
        sign = '<' if self.strict else '@'
        for by in self.by:
            for alpha in self.alphas:
                right = [(d < alpha * lengths[by]) if self.strict else (d <= alpha * lengths[by]) for d, lengths, _ in results]
                for per in self.per:
                    name = f'{by}-per-{per}'
                    found[f'{name}{sign}{alpha:g}'] = _share(right, per)
                    if numbers:
                        values = [_share([right[i] for i in chosen], per) for chosen in numbers.values()]
                        found[f'{name}-category{sign}{alpha:g}'] = float(np.mean(values))
                        table[f'{name}{sign}{alpha:g}'] = values
        if numbers:
            rows = [
                [category, str(len(chosen)), *(f'{values[k]:.1f}' for values in table.values())]
                for k, (category, chosen) in enumerate(numbers.items())
            ]
            print_log('PCK\n' + format_table(['category', 'pairs', *table], rows), MMLogger.get_current_instance())
        return found


def _share(right: list[np.ndarray], per: str) -> float:
    """Percent."""
    return 100 * float(np.concatenate(right).mean() if per == 'point' else np.mean([r.mean() for r in right]))
