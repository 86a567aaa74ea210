"""Backbones: DiffusionBackbone and the plain ones it is compared with."""

from .cached_backbone import CachedBackbone
from .clip_backbone import ClipBackbone
from .dense_sift import DenseSift
from .diffusion_backbone import DiffusionBackbone
from .feedback_backbone import FeedbackBackbone
from .raw_pixels import RawPixels
from .timm_backbone import TimmBackbone

__all__ = ['CachedBackbone', 'ClipBackbone', 'DenseSift', 'DiffusionBackbone', 'FeedbackBackbone', 'RawPixels', 'TimmBackbone']
