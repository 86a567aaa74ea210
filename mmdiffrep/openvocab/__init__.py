"""Images and words in one space: vocabularies, text banks, CLIP models, masks named by both. Needs neither a toolkit nor mmengine."""

from .clip import build_clip, load_clip, save_clip
from .coco_export import read_panoptic_png, write_panoptic_json, write_panoptic_png
from .fusion import PRESETS, fuse
from .grounding import grounding_loss, grounding_similarity
from .image_tower import ImageTower, load_image_tower
from .mask_clip import MaskAttentionClip, MaskClassifier
from .mask_pool import MaskPoolClip, build_mask_classifier
from .panoptic import instances, merge_panoptic, semantic_labels, semantic_scores
from .phrases import noun_phrases, sample_phrases
from .prompts import templates
from .random_text import RandomText
from .ready import READY, ready
from .saved_text import SavedText
from .text_bank import TextBank, TextBanks
from .text_base import TextEncoder
from .text_encoders import OpenClipText, SentenceText, TransformersClipText, build_text_encoder
from .text_tower import clip_text_model, save_text_encoder
from .tokenizer import build_tokenizer, cut_merges
from .vocabulary import Category, Vocabulary

__all__ = [
    'PRESETS',
    'READY',
    'Category',
    'ImageTower',
    'MaskAttentionClip',
    'MaskClassifier',
    'MaskPoolClip',
    'OpenClipText',
    'RandomText',
    'SavedText',
    'SentenceText',
    'TextBank',
    'TextBanks',
    'TextEncoder',
    'TransformersClipText',
    'Vocabulary',
    'build_clip',
    'build_mask_classifier',
    'build_text_encoder',
    'build_tokenizer',
    'clip_text_model',
    'cut_merges',
    'fuse',
    'grounding_loss',
    'grounding_similarity',
    'instances',
    'load_clip',
    'load_image_tower',
    'merge_panoptic',
    'noun_phrases',
    'read_panoptic_png',
    'ready',
    'sample_phrases',
    'save_clip',
    'save_text_encoder',
    'semantic_labels',
    'semantic_scores',
    'templates',
    'write_panoptic_json',
    'write_panoptic_png',
]
