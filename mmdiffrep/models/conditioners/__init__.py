"""Conditioners: modules that tell the network more than its fixed condition."""

from .text_adapter import TextAdapter

__all__ = ['TextAdapter']
