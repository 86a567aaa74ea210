"""Registered models: denoisers, adapters, backbones, pre-trainers."""

from . import adapters, backbones, denoisers

__all__ = ['adapters', 'backbones', 'denoisers']
