"""ClassSample: an image's class, and what a classifier says of it."""

from __future__ import annotations

from mmengine.structures import BaseDataElement


class ClassSample(BaseDataElement):
    """Fields: ``gt_label``, a class number; after prediction ``pred_scores``, probabilities (K,), and ``pred_label``."""
