"""SemanticIoU: mmseg's IoU for models whose classes are a vocabulary's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmseg.evaluation import IoUMetric

from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import METRICS


@METRICS.register_module()
class SemanticIoU(IoUMetric):
    """mmseg's ``IoUMetric`` of predictions that are numbered as a :class:`Vocabulary` (things first).

    Labels are mmseg's (``gt_sem_seg.data``), numbered as the data set's classes, or those of a :class:`PanopticDataset`
    (``gt_sem_seg.sem_seg``), numbered as its vocabulary.

    Args: mmseg's. The names of the figures begin with ``semantic/``.

    Raises:
        ValueError: a sample's vocabulary is not that of the data set: it has another number of classes.
    """

    default_prefix = 'semantic'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        classes = len(self.dataset_meta['classes'])
        renumbered = []
        for sample in data_samples:
            vocabulary = sample.get('vocabulary')
            if not isinstance(vocabulary, Vocabulary) or len(vocabulary) != classes:
                given = f'{len(vocabulary)} classes' if isinstance(vocabulary, Vocabulary) else 'no vocabulary'
                raise ValueError(
                    f'a prediction has {given}, the data set {classes}: set model.ask to the data set\'s vocabulary, for example '
                    "ask='ade20k-150'"
                )
            labels = sample['pred_sem_seg']['data']
            truth = sample['gt_sem_seg']
            if 'data' in truth:
                labels = torch.tensor(vocabulary.order, device=labels.device)[labels]
            else:
                truth = dict(data=truth['sem_seg'])
            renumbered.append({**sample, 'pred_sem_seg': dict(data=labels), 'gt_sem_seg': truth})
        super().process(data_batch, renumbered)
