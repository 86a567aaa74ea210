"""Data sets and transforms. Those that subclass mmseg's or mmdet's are there where those are."""

from importlib.util import find_spec

from .captions import ImageCaptions
from .classification import ImageClassification
from .cub import CUBPairs
from .davis import DavisDataset
from .few_labels import LabelSubset
from .fixed_views import FixedViews
from .hpatches import HPatchesDataset
from .images import ImageFolder
from .instance_crops import InstanceCrops
from .labelled_pixels import LabelledPixels
from .pairs import KeypointPairs, PFPascalDataset, PFWillowDataset, SPairDataset

__all__ = [
    'CUBPairs',
    'DavisDataset',
    'FixedViews',
    'HPatchesDataset',
    'ImageCaptions',
    'ImageClassification',
    'ImageFolder',
    'InstanceCrops',
    'KeypointPairs',
    'LabelSubset',
    'LabelledPixels',
    'PFPascalDataset',
    'PFWillowDataset',
    'SPairDataset',
]

if find_spec('mmseg') is not None:
    from .label_transforms import CheckLabels, IgnoreSmallClasses
    from .segmentation import (
        CamVidDataset,
        LoadWideAnnotations,
        SegFolder,
        ToyScenesDataset,
        VocabularySegDataset,
    )

    __all__ += [
        'CamVidDataset',
        'CheckLabels',
        'IgnoreSmallClasses',
        'LoadWideAnnotations',
        'SegFolder',
        'ToyScenesDataset',
        'VocabularySegDataset',
    ]

if find_spec('mmdet') is not None:
    from .panoptic import PanopticDataset

    __all__ += ['PanopticDataset']
