"""Correspondence: points, homographies and labels of one image in another, by any backbone's features."""

from .homography_matcher import HomographyMatcher
from .label_propagator import LabelPropagator
from .point_matcher import PointMatcher

__all__ = ['HomographyMatcher', 'LabelPropagator', 'PointMatcher']
