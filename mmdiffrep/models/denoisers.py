"""The toolkit-free core's denoisers, by name in the registry."""

from mmdiffrep.diffusion.pixel_unet import PixelUNet
from mmdiffrep.registry import MODELS

MODELS.register_module(module=PixelUNet)

__all__ = ['PixelUNet']
