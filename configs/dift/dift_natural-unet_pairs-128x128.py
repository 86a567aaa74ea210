# Photographs, resized to 128×128 for the shipped network; points are given and found in their own pixels. tools/match.py's default.
_base_ = [
    '../_base_/models/point-matcher.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/pairs-128x128.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=['up_blocks.1.attentions.1'], timesteps=50, noise=dict(kind='shared', seed=0, draws=8)
)
model = dict(backbone=backbone, size=128)
