_base_ = [
    '../_base_/models/point-matcher.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/pairs_toyscenes-128x128.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(taps=['up_blocks.1.attentions.1'], timesteps=50)
model = dict(backbone=backbone)
