"""Adapters: the small trained part between taps and a head."""

from .concat_upsample import ConcatUpsample
from .stride_pyramid import StridePyramid

__all__ = ['ConcatUpsample', 'StridePyramid']
