"""Conditioners: modules that tell the network more than its fixed condition."""

from .implicit_captioner import ImplicitCaptioner
from .text_adapter import TextAdapter

__all__ = ['ImplicitCaptioner', 'TextAdapter']
