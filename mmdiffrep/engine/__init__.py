"""Hooks."""

from .hooks import RandomStateHook, SaveDiffusersHook

__all__ = ['RandomStateHook', 'SaveDiffusersHook']
