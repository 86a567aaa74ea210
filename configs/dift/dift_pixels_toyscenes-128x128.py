# Colours alone, averaged over the cells that the networks' maps have.
_base_ = [
    '../_base_/models/point-matcher.py',
    '../_base_/datasets/pairs_toyscenes-128x128.py',
    '../_base_/correspondence_runtime.py',
]
model = dict(backbone=dict(type='mmdiffrep.RawPixels', strides=[4]), metric='l2')
