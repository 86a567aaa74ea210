"""Hooks."""

from .hooks import PromptHook, RandomStateHook, SaveDiffusersHook

__all__ = ['PromptHook', 'RandomStateHook', 'SaveDiffusersHook']
