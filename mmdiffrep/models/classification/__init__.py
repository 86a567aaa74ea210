"""Classification: one class an image, from any backbone's maps."""

from .attention_fusion import AttentionFusion
from .classifier import DiffusionClassifier
from .heads import ConvHead, PooledHead

__all__ = ['AttentionFusion', 'ConvHead', 'DiffusionClassifier', 'PooledHead']
