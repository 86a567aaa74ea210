# The maps of images and mirrored images are computed once and kept; so no crops, and one draw of the noise.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/denoisers/cifar-unet.py',
    '../_base_/datasets/cifar10-32x32.py',
    '../_base_/schedules/classify_15e.py',
    '../_base_/classification_runtime.py',
]
model = dict(
    backbone=dict(type='mmdiffrep.CachedBackbone', backbone=_base_.backbone),
    head=dict(type='mmdiffrep.PooledHead', num_classes=_base_.num_classes, pool=1, norm='bn'),
)
train_dataloader = dict(dataset=dict(transforms=[dict(type='RandomHorizontalFlip')]))
