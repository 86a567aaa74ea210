"""Hooks: prompts, exact continuation, saving pre-trained networks."""

from .prompt_hook import PromptHook
from .random_state_hook import RandomStateHook
from .save_diffusers_hook import SaveDiffusersHook

__all__ = ['PromptHook', 'RandomStateHook', 'SaveDiffusersHook']
