"""Backbones: DiffusionBackbone and the plain ones it is compared with."""

from .clip_backbone import ClipBackbone
from .diffusion_backbone import DiffusionBackbone
from .raw_pixels import RawPixels

__all__ = ['ClipBackbone', 'DiffusionBackbone', 'RawPixels']
