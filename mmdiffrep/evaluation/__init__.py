"""Metrics. Those that subclass mmseg's are there where mmseg is."""

from importlib.util import find_spec

from .class_accuracy import ClassAccuracy
from .ddpm_seg_iou import DDPMSegIoU
from .homography_accuracy import HomographyAccuracy
from .panoptic_quality import PanopticQuality
from .pck import PCK
from .region_contour import RegionAndContour
from .timestep_loss import TimestepLoss
from .zero_shot import ZeroShotAccuracy

__all__ = ['ClassAccuracy', 'DDPMSegIoU', 'HomographyAccuracy', 'PCK', 'PanopticQuality', 'RegionAndContour', 'TimestepLoss', 'ZeroShotAccuracy']

if find_spec('mmseg') is not None:
    from .semantic_iou import SemanticIoU

    __all__ += ['SemanticIoU']
