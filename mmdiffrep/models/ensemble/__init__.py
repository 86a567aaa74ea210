"""Ensembles of pixel classifiers on frozen features (DDPM-Seg)."""

from .batched_mlp import MLPEnsemble
from .pixel_ensemble import PixelEnsemble
from .segmentor import EnsembleSegmentor

__all__ = ['EnsembleSegmentor', 'MLPEnsemble', 'PixelEnsemble']
