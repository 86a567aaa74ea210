"""Metrics."""

from .timestep_loss import TimestepLoss
from .zero_shot import ZeroShotAccuracy

__all__ = ['TimestepLoss', 'ZeroShotAccuracy']
