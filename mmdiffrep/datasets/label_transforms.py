"""Transforms of labels: refuse wrong ones by name, ignore what is too small to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform

from mmdiffrep.registry import TRANSFORMS


@TRANSFORMS.register_module()
class CheckLabels(BaseTransform):
    """Refuses masks of another size than their image and labels that are no class, by the file's name.

    Stands directly behind ``LoadAnnotations``, before anything resizes or crops the mask: it is compared with the image's
    size as loaded (``ori_shape``).

    Args:
        num_classes: default: that of the data set, which ``SegFolder`` gives; other data sets need it here.
        ignore_index: the label of pixels that are not labelled.

    Raises:
        ValueError: when called, for a mask that is not (H, W), has another size, or another label than 0 … num_classes - 1 and
            ``ignore_index``.
    """

    def __init__(self, num_classes: int | None = None, ignore_index: int = 255) -> None:
        if num_classes is not None and num_classes < 1:
            raise ValueError(f'num_classes={num_classes} does not fit; allowed: at least 1')
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        labels, file = results['gt_seg_map'], results.get('seg_map_path', 'a mask')
        classes = self.num_classes or results.get('num_classes')
        if classes is None:
            raise ValueError(
                'CheckLabels does not know how many classes there are: give num_classes (mmdiffrep.SegFolder tells it, '
                'mmseg data sets do not)'
            )
        if labels.ndim != 2:
            raise ValueError(
                f'{file} has shape {labels.shape}; needed: one label a pixel (H, W). Is it a picture in colours? '
                'Write the class numbers into a grey PNG'
            )
        size = tuple(results.get('ori_shape', labels.shape)[:2])
        if labels.shape != size:
            raise ValueError(
                f'{file} is {labels.shape[0]}×{labels.shape[1]} and its image {results.get("img_path")} {size[0]}×{size[1]} (height × '
                "width): a mask needs its image's size. Make it again, or enlarge it with nearest neighbours. (CheckLabels belongs "
                'directly behind LoadAnnotations)'
            )
        found = np.unique(labels)
        wrong = [int(k) for k in found if k != self.ignore_index and not 0 <= k < classes]
        if wrong:
            raise ValueError(
                f'{file} has labels {wrong[:8]}{" …" if len(wrong) > 8 else ""} and the data set {classes} classes; allowed: 0 to '
                f'{classes - 1}, and {self.ignore_index} for pixels that are not labelled'
            )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes}, ignore_index={self.ignore_index})'


@TRANSFORMS.register_module()
class IgnoreSmallClasses(BaseTransform):
    """In a training image, classes with fewer than ``min_pixels`` pixels are ignored (Baranchuk et al. 2022).

    Their pixels get ``ignore_index``. It counts in the mask as it is then: put it behind what resizes or crops.

    Args:
        min_pixels: the smallest number of pixels that is kept.
        ignore_index: the label of pixels that are not labelled.
    """

    def __init__(self, min_pixels: int = 20, ignore_index: int = 255) -> None:
        if min_pixels < 0:
            raise ValueError(
                f'min_pixels={min_pixels} does not fit; allowed: 0 (all are kept) and more'
            )
        self.min_pixels, self.ignore_index = min_pixels, ignore_index

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        labels = results['gt_seg_map']
        found, counts = np.unique(labels, return_counts=True)
        small = found[counts < self.min_pixels]
        if small.size:
            results['gt_seg_map'] = np.where(
                np.isin(labels, small), labels.dtype.type(self.ignore_index), labels
            )
        return results

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(min_pixels={self.min_pixels}, ignore_index={self.ignore_index})'
        )
