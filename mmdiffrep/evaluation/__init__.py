"""Metrics."""

from .timestep_loss import TimestepLoss

__all__ = ['TimestepLoss']
