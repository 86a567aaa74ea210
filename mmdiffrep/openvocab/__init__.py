"""Images and words in one space: CLIP models by open_clip. Needs neither a toolkit nor mmengine."""

from .clip import build_clip, load_clip, save_clip
from .text_tower import clip_text_model, save_text_encoder
from .tokenizer import build_tokenizer, cut_merges

__all__ = [
    'build_clip',
    'build_tokenizer',
    'clip_text_model',
    'cut_merges',
    'load_clip',
    'save_clip',
    'save_text_encoder',
]
