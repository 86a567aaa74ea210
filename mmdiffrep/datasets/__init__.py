"""Data sets and transforms."""

from .images import ImageFolder

__all__ = ['ImageFolder']
