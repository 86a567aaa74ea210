"""Correspondence: points of one image in another, by any backbone's features."""

from .point_matcher import PointMatcher

__all__ = ['PointMatcher']
