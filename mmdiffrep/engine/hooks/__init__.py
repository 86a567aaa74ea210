"""Hooks: prompts, exact continuation, saving and watching pre-trained networks."""

from .confusion_hook import ConfusionMatrixHook
from .draw_pairs import DrawPairsHook
from .linear_probe_hook import LinearProbeHook
from .pixel_features_hook import PixelFeaturesHook
from .prompt_hook import PromptHook
from .random_state_hook import RandomStateHook
from .sample_hook import SampleHook
from .save_clip_hook import SaveClipHook
from .save_diffusers_hook import SaveDiffusersHook
from .save_masks import SaveMasksHook
from .sharded_clip_hook import ShardedClipHook

__all__ = [
    'ConfusionMatrixHook',
    'DrawPairsHook',
    'LinearProbeHook',
    'PixelFeaturesHook',
    'PromptHook',
    'RandomStateHook',
    'SampleHook',
    'SaveClipHook',
    'SaveDiffusersHook',
    'SaveMasksHook',
    'ShardedClipHook',
]
