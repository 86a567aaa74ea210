"""Data samples of tasks that no toolkit has: classes of images, pairs of images, videos."""

from __future__ import annotations

from mmengine.structures import BaseDataElement


class ClassSample(BaseDataElement):
    """Fields: ``gt_label``, a class number; after prediction ``pred_scores``, probabilities (K,), and ``pred_label``."""


class PairSample(BaseDataElement):
    """Fields: ``source_points`` and ``target_points`` (n, 2), x and y; after matching ``pred_points`` (n, 2) and ``pred_scores`` (n,).

    Metainfo: ``source_path``, ``target_path``, ``source_shape``, ``target_shape`` (H, W), ``source_box``, ``target_box``
    (x1, y1, x2, y2 or None), ``category``.
    """


class VideoSample(BaseDataElement):
    """Metainfo: ``video``, ``frames`` and ``masks`` (files); after prediction ``pred_masks``, for each frame (H, W) uint8."""
