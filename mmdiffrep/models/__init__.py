"""Registered models: denoisers, adapters, backbones, conditioners, pre-trainers."""

from . import adapters, backbones, conditioners, denoisers, pretrainers

__all__ = ['adapters', 'backbones', 'conditioners', 'denoisers', 'pretrainers']
