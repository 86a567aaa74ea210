"""Metrics."""

from .panoptic_quality import PanopticQuality
from .timestep_loss import TimestepLoss
from .zero_shot import ZeroShotAccuracy

__all__ = ['PanopticQuality', 'TimestepLoss', 'ZeroShotAccuracy']
