# Blocks of the way up at three timesteps, mixed by trained bottlenecks and weights; the frozen network looks at each image once.
_base_ = [
    '../_base_/models/point-matcher.py',
    '../_base_/denoisers/toy-unet.py',
    '../_base_/datasets/pairs_toyscenes-training-128x128.py',
    '../_base_/schedules/match_4e.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=[
        'up_blocks.0.attentions.1',
        'up_blocks.1.attentions.0',
        'up_blocks.1.attentions.1',
        'up_blocks.2.resnets.0',
    ],
    timesteps=[20, 100, 200],
)
model = dict(
    backbone=dict(type='mmdiffrep.CachedBackbone', backbone=backbone),
    neck=dict(type='mmdiffrep.LayerMixing', out_channels=128, width=64, stride=4, timesteps=3),
)
