"""Pictures of features and predictions, as RGB arrays (H, W, 3) uint8."""

from .canvas import contact_sheet, legend, text_picture, write_picture
from .features import feature_sheet, pca_rgb, principal_components
from .overlays import label_colours, overlay

__all__ = [
    'contact_sheet',
    'feature_sheet',
    'label_colours',
    'legend',
    'overlay',
    'pca_rgb',
    'principal_components',
    'text_picture',
    'write_picture',
]
