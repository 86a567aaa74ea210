"""Generative pre-training through the runner."""

from .autoencoder_pretrainer import AutoencoderPretrainer
from .denoising_pretrainer import DenoisingPretrainer

__all__ = ['AutoencoderPretrainer', 'DenoisingPretrainer']
