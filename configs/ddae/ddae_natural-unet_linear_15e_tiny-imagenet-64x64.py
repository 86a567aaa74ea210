_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/tiny-imagenet-64x64.py',
    '../_base_/schedules/classify_15e.py',
    '../_base_/classification_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=['up_blocks.1.attentions.1'], timesteps=50, image_mean=[0.0] * 3, image_std=[1.0] * 3
)
model = dict(
    backbone=dict(type='mmdiffrep.CachedBackbone', backbone=backbone),
    head=dict(type='mmdiffrep.PooledHead', num_classes=_base_.num_classes, pool=1, norm='bn'),
)
train_dataloader = dict(dataset=dict(transforms=[]))
