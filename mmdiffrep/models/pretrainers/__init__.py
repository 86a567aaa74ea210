"""Generative pre-training through the runner."""

from .denoising_pretrainer import DenoisingPretrainer

__all__ = ['DenoisingPretrainer']
