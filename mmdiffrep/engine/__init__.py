"""Hooks and the optimizer's rates."""

from .hooks import PromptHook, RandomStateHook, SaveDiffusersHook
from .layer_decay import LayerDecayConstructor

__all__ = ['LayerDecayConstructor', 'PromptHook', 'RandomStateHook', 'SaveDiffusersHook']
