"""Results: from classes and masks of one image to panoptic, instance and semantic fields that both toolkits read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmdiffrep.openvocab.panoptic import instances, merge_panoptic, semantic_labels
from mmdiffrep.openvocab.vocabulary import Vocabulary


class Results:
    """Args:
    panoptic, instance, semantic: which are made.
    object_mask_thr: masks of a lower score are left out of the panoptic result.
    overlap_thr: share of a mask that must be its own, else it is left out.
    max_per_image: instances.
    """

    def __init__(
        self,
        panoptic: bool = True,
        instance: bool = True,
        semantic: bool = True,
        object_mask_thr: float = 0.0,
        overlap_thr: float = 0.8,
        max_per_image: int = 100,
    ) -> None:
        self.panoptic, self.instance, self.semantic = panoptic, instance, semantic
        self.object_mask_thr, self.overlap_thr, self.max_per_image = (
            object_mask_thr,
            overlap_thr,
            max_per_image,
        )

    def write(
        self,
        sample: Any,
        log_probs: Tensor,
        masks: Tensor,
        size: tuple[int, int],
        vocabulary: Vocabulary,
    ) -> None:
        """Add the fields to a data sample.

        Args:
            log_probs: (Q, K + 1), void last.
            masks: logits (Q, h, w) of the image without padding.
            size: of the results.
        """
        is_thing = vocabulary.is_thing
        if self.panoptic:
            ids, segments = merge_panoptic(
                log_probs, masks, is_thing, self.object_mask_thr, self.overlap_thr, size
            )
            sample.set_field(dict(ids=ids, segments=segments), 'pred_panoptic')
            sample.pred_panoptic_seg = PixelData(
                sem_seg=mmdet_ids(ids, segments, len(vocabulary))[None]
            )
        if self.instance:
            sample.pred_instances = InstanceData(
                **instances(log_probs, masks, is_thing, self.max_per_image, size)
            )
        if self.semantic:
            labels = semantic_labels(log_probs, masks, size)[None]
            sample.pred_sem_seg = PixelData(data=labels, sem_seg=labels)


def mmdet_ids(ids: Tensor, segments: list[dict[str, Any]], classes: int) -> Tensor:
    """mmdet's panoptic map (H, W): class + 1000 · number of the instance, ``classes`` where nothing is.

    mmdet's format has no room for 1000 classes or more; ``pred_panoptic`` has.
    """
    offset = max(INSTANCE_OFFSET, classes + 1)
    table: np.ndarray = np.full(len(segments) + 1, classes, np.int64)
    for number, segment in enumerate(segments, 1):
        table[number] = segment['category'] + offset * (number if segment['isthing'] else 0)
    return torch.from_numpy(table).to(ids.device)[ids.long()]
