"""Hooks: prompts, exact continuation, saving and watching pre-trained networks."""

from .linear_probe_hook import LinearProbeHook
from .pixel_features_hook import PixelFeaturesHook
from .prompt_hook import PromptHook
from .random_state_hook import RandomStateHook
from .sample_hook import SampleHook
from .save_clip_hook import SaveClipHook
from .save_diffusers_hook import SaveDiffusersHook

__all__ = [
    'LinearProbeHook',
    'PixelFeaturesHook',
    'PromptHook',
    'RandomStateHook',
    'SampleHook',
    'SaveClipHook',
    'SaveDiffusersHook',
]
