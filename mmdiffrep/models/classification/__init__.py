"""Classification: one class an image, from any backbone's maps."""

from .classifier import DiffusionClassifier

__all__ = ['DiffusionClassifier']
