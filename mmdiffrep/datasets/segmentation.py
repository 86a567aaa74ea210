"""Semantic segmentation data sets for mmseg: a folder of images and masks, ToyScenes, CamVid; all with few-label subsets.

For open-vocabulary models: one whose classes are a vocabulary's, and loading of labels beyond 255.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmengine.fileio as fileio
import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations

from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import DATASETS, TRANSFORMS

from .few_labels import chosen
from .toyscenes.classes import SEMANTIC_CLASSES, SEMANTIC_PALETTE


@DATASETS.register_module()
class SegFolder(BaseSegDataset):
    """mmseg's BaseSegDataset, of which a seeded subset can be taken.

    Args:
        num_labels: so many images, drawn without repetition; None: all.
        subset_seed: which ones. The subset of N is part of the subset of N + 1.
    """

    def __init__(self, num_labels: int | None = None, subset_seed: int = 0, **kwargs: Any) -> None:
        self.num_labels, self.subset_seed = num_labels, subset_seed
        kwargs.setdefault('reduce_zero_label', False)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        folder = self.data_prefix.get('img_path')
        records = super().load_data_list() if Path(folder or '').is_dir() else []
        if not records:
            raise FileNotFoundError(
                f'no images ending in {self.img_suffix!r} in {folder}. '
                'Set data_root to where the data is (ToyScenes: python tools/make_toyscenes.py)'
            )
        taken = [records[i] for i in chosen(len(records), self.num_labels, self.subset_seed)]
        classes = self.metainfo.get('classes')
        return taken if classes is None else [dict(record, num_classes=len(classes)) for record in taken]


@DATASETS.register_module()
class VocabularySegDataset(SegFolder):
    """Labels that count a vocabulary's classes in the order in which they are given.

    Args:
        vocabulary: anything that :meth:`Vocabulary.parse` takes, such as a JSON list of names.
    """

    def __init__(self, vocabulary: Any, **kwargs: Any) -> None:
        parsed = Vocabulary.parse(vocabulary)
        names = tuple(parsed.names[k] for k in parsed.place)
        metainfo = dict(kwargs.pop('metainfo', None) or {}, classes=names)
        super().__init__(metainfo=metainfo, **kwargs)


@TRANSFORMS.register_module()
class LoadWideAnnotations(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` without its cut to 8 bits: labels up to 65535, from PNG or TIFF images of one channel."""

    def _load_seg_map(self, results: dict) -> None:
        import cv2

        path = results['seg_map_path']
        content = np.frombuffer(fileio.get(path, backend_args=self.backend_args), np.uint8)
        labels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        if labels is None or labels.ndim != 2:
            raise ValueError(
                f'{path} is not an image of one channel: shape {getattr(labels, "shape", None)}; labels are needed, of 8 or 16 bits'
            )
        labels = labels.astype(np.int64)
        if results.get('label_map') is not None:
            before = labels.copy()
            for old, new in results['label_map'].items():
                labels[before == old] = new
        if self.reduce_zero_label or (self.reduce_zero_label is None and results['reduce_zero_label']):
            nothing = 2**16 - 1
            labels = np.where((labels == 0) | (labels == nothing), nothing, labels - 1)
        results['gt_seg_map'] = labels
        results['seg_fields'].append('gt_seg_map')


@DATASETS.register_module()
class ToyScenesDataset(SegFolder):
    """ToyScenes' semantic labels: seven textures and six shapes."""

    METAINFO = dict(classes=SEMANTIC_CLASSES, palette=SEMANTIC_PALETTE)

    def __init__(self, img_suffix: str = '.png', seg_map_suffix: str = '.png', **kwargs: Any) -> None:
        super().__init__(img_suffix=img_suffix, seg_map_suffix=seg_map_suffix, **kwargs)


@DATASETS.register_module()
class CamVidDataset(SegFolder):
    """CamVid (Brostow et al. 2009) with the usual 11 classes; 255 is not labelled."""

    METAINFO = dict(
        classes=(
            'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign symbol', 'fence', 'car', 'pedestrian',
            'bicyclist',
        ),
        palette=[
            [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
            [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
        ],
    )  # fmt: skip
