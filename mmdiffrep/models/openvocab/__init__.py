"""Open-vocabulary panoptic segmentation on mmdet."""

from .head import OpenVocabMask2FormerHead
from .segmentor import OpenVocabSegmentor

__all__ = ['OpenVocabMask2FormerHead', 'OpenVocabSegmentor']
