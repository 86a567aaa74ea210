"""Hooks: exact continuation, saving pre-trained networks."""

from .random_state_hook import RandomStateHook
from .save_diffusers_hook import SaveDiffusersHook

__all__ = ['RandomStateHook', 'SaveDiffusersHook']
