"""DDPMSegIoU: mean IoU as Baranchuk et al. 2022 (https://arxiv.org/abs/2112.03126) computed their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger, print_log
from torch import Tensor

from mmdiffrep.registry import METRICS
from mmdiffrep.utils.taps import format_table


@METRICS.register_module()
class DDPMSegIoU(BaseMetric):
    """The paper's mIoU, in percent, as ``ddpm_seg/mIoU``; beside mmseg's ``IoUMetric`` in one list of evaluators.

    For a class c, over all pixels of all test images at once: IoU_c = |pred = c and true = c| / |pred = c or true = c|, and the mean
    over all classes. Where mmseg's differs:

    * Pixels without a label count: what is predicted there enlarges its class's union. mmseg leaves them out.
    * A class that is neither in the test set nor predicted scores 0 and is averaged over. mmseg gives NaN and leaves it out.

    So it is never above mmseg's, and equal where every pixel is labelled and every class occurs.

    Args:
        collect_device, prefix: mmengine's.
    """

    default_prefix = 'ddpm_seg'

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Each sample's counts: pixels of a class predicted and true, and predicted or true, (2, C) int64."""
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            pred = sample['pred_sem_seg']['data'].squeeze()
            true = sample['gt_sem_seg']['data'].squeeze().to(pred.device)
            if pred.shape != true.shape:
                raise ValueError(
                    f'{sample.get("img_path", "a sample")}: the prediction is {tuple(pred.shape)} and the labels {tuple(true.shape)}; '
                    'both must have the size of the image as loaded. Do not resize the labels in the test pipeline'
                )
            both = _count(pred[pred == true], classes)
            union = _count(pred, classes) + _count(true, classes) - both
            self.results.append(torch.stack([both, union]).cpu())

    def compute_metrics(self, results: list[Tensor]) -> dict[str, float]:
        both, union = torch.stack(results).sum(0).double().numpy()
        iou = 100 * np.divide(both, union, out=np.zeros_like(both), where=union > 0)
        rows = [[name, f'{value:.2f}'] for name, value in zip(self.dataset_meta['classes'], iou)]
        print_log(
            "the paper's IoU (ddpm_seg):\n" + format_table(['class', 'IoU'], rows),
            MMLogger.get_current_instance(),
        )
        return dict(mIoU=float(iou.mean()))


def _count(labels: Tensor, classes: int) -> Tensor:
    """Pixels of each class, (C,); other labels are no class."""
    labels = labels.flatten().long()
    return torch.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
