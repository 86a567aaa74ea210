"""ClassAccuracy: top-k accuracy and a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmdiffrep.registry import METRICS


@METRICS.register_module()
class ClassAccuracy(BaseMetric):
    """``accuracy/top1`` … in percent of all images, and ``accuracy/mean_class``: the mean of the classes' accuracies.

    After an evaluation ``confusion`` is the matrix (K, K) of counts, truth by prediction, on the main process.

    Args:
        topk: for each k, the share of images whose class is among the k largest scores (of equal scores the lower class counts first).
        collect_device, prefix: mmengine's.

    Raises:
        ValueError: a k below 1 or above the number of classes.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] | int = (1,), collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.topk = [topk] if isinstance(topk, int) else list(topk)
        if not self.topk or min(self.topk) < 1:
            raise ValueError(f'topk={topk} does not fit; allowed: whole numbers from 1')
        self.confusion: Tensor | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Each sample's truth, prediction, and rank of the truth."""
        for sample in data_samples:
            scores, truth = sample['pred_scores'].cpu(), int(sample['gt_label'])
            if max(self.topk) > len(scores) or truth >= len(scores):
                raise ValueError(
                    f'topk={self.topk} and class {truth} of {sample.get("img_path", "an image")} do not fit scores of {len(scores)} classes'
                )
            ahead = int((scores > scores[truth]).sum() + (scores[:truth] == scores[truth]).sum())
            self.results.append((truth, int(sample['pred_label']), ahead, len(scores)))

    def compute_metrics(self, results: list[tuple[int, int, int, int]]) -> dict[str, float]:
        truth, predicted, ahead, classes = torch.tensor(results).T
        count = int(classes.max())
        self.confusion = torch.bincount(truth * count + predicted, minlength=count**2).view(count, count)
        found = {f'top{k}': 100 * (ahead < k).double().mean().item() for k in self.topk}
        totals = self.confusion.sum(1)
        own = self.confusion.diag()[totals > 0].double() / totals[totals > 0]
        return {**found, 'mean_class': 100 * own.mean().item()}
