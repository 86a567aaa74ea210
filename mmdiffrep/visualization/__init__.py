"""Pictures of features and predictions, as RGB arrays (H, W, 3) uint8."""

from .canvas import contact_sheet, legend, text_picture, write_picture
from .features import feature_sheet, pca_rgb, principal_components
from .overlays import label_colours, overlay
from .panoptic import draw_panoptic, segment_colours
from .uncertainty import draw_uncertainty, uncertainty_map

__all__ = [
    'contact_sheet',
    'draw_panoptic',
    'draw_uncertainty',
    'feature_sheet',
    'label_colours',
    'legend',
    'overlay',
    'pca_rgb',
    'principal_components',
    'segment_colours',
    'text_picture',
    'uncertainty_map',
    'write_picture',
]
