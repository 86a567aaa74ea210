"""Data sets and transforms. Those that subclass mmseg's are there where mmseg is."""

from importlib.util import find_spec

from .images import ImageFolder

__all__ = ['ImageFolder']

if find_spec('mmseg') is not None:
    from .segmentation import CamVidDataset, SegFolder, ToyScenesDataset

    __all__ += ['CamVidDataset', 'SegFolder', 'ToyScenesDataset']
