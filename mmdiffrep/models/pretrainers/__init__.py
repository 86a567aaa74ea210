"""Generative pre-training through the runner."""

from .autoencoder_pretrainer import AutoencoderPretrainer
from .clip_pretrainer import ClipPretrainer
from .denoising_pretrainer import DenoisingPretrainer

__all__ = ['AutoencoderPretrainer', 'ClipPretrainer', 'DenoisingPretrainer']
