"""Data sets and transforms. Those that subclass mmseg's are there where mmseg is."""

from importlib.util import find_spec

from .captions import ImageCaptions
from .images import ImageFolder
from .instance_crops import InstanceCrops

__all__ = ['ImageCaptions', 'ImageFolder', 'InstanceCrops']

if find_spec('mmseg') is not None:
    from .segmentation import CamVidDataset, SegFolder, ToyScenesDataset

    __all__ += ['CamVidDataset', 'SegFolder', 'ToyScenesDataset']
