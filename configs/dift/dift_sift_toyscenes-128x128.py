# SIFT descriptors on a grid of four pixels.
_base_ = ['dift_pixels_toyscenes-128x128.py']
model = dict(
    backbone=dict(_delete_=True, type='mmdiffrep.DenseSift', stride=4, patch=8.0), metric='cosine'
)
