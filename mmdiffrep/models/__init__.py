"""Registered models: denoisers, adapters, backbones, pre-trainers."""

from . import adapters, backbones, denoisers, pretrainers

__all__ = ["adapters", "backbones", "denoisers", "pretrainers"]
