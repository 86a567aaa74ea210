"""Open-vocabulary panoptic segmentation on mmdet."""

from mmdiffrep.compat import let_mmdet_draw_nothing

from .head import OpenVocabMask2FormerHead
from .segmentor import OpenVocabSegmentor

let_mmdet_draw_nothing()

__all__ = ['OpenVocabMask2FormerHead', 'OpenVocabSegmentor']
