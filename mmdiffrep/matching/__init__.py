"""Correspondence from feature maps: points, dense flow, homographies, labels over frames. Knows no toolkit."""

from .points import Matches, match_points, soft_argmax
from .propagation import Propagation
from .upsampled import UpsampledMap
from .vectors import mutual_nearest, nearest, normalised

__all__ = [
    'Matches',
    'Propagation',
    'UpsampledMap',
    'match_points',
    'mutual_nearest',
    'nearest',
    'normalised',
    'soft_argmax',
]
