# The paper's: block 24 (1024 channels at 16×16) at t = 90, fresh noise, pooled to 2×2 (4096 features); batch 4 × 32.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/denoisers/adm-256.py',
    '../_base_/datasets/imagenet-256x256.py',
    '../_base_/schedules/classify_sgd-28e.py',
    '../_base_/classification_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=['gdc:b24'],
    timesteps=90,
    noise=dict(kind='fresh'),
    image_mean=[0.0] * 3,
    image_std=[1.0] * 3,
)
model = dict(
    backbone=backbone,
    head=dict(type='mmdiffrep.PooledHead', num_classes=_base_.num_classes, pool=2),
)
