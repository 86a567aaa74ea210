# The paper's DiT: block 13, mean over the tokens, null class, t = 121.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/denoisers/dit-xl-2-256.py',
    '../_base_/datasets/cifar10-256x256.py',
    '../_base_/schedules/classify_30e.py',
    '../_base_/classification_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=['transformer_blocks.13'],
    timesteps=121,
    noise=dict(kind='fresh'),
    image_mean=[0.0] * 3,
    image_std=[1.0] * 3,
)
model = dict(
    backbone=backbone, head=dict(type='mmdiffrep.PooledHead', num_classes=_base_.num_classes)
)
