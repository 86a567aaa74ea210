"""The toolkit-free core's denoisers, by name in the registry."""

from mmdiffrep.diffusion.dit import DiT
from mmdiffrep.diffusion.pixel_unet import PixelUNet
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.registry import MODELS

for denoiser in (PixelUNet, StableDiffusion, DiT):
    MODELS.register_module(module=denoiser)

__all__ = ['DiT', 'PixelUNet', 'StableDiffusion']
