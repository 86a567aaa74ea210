"""Adapters: the small trained part between taps and a head."""

from .concat_upsample import ConcatUpsample
from .layer_mixing import LayerMixing
from .stride_concat import StrideConcat
from .stride_pyramid import StridePyramid

__all__ = ['ConcatUpsample', 'LayerMixing', 'StrideConcat', 'StridePyramid']
