# ResNet-18 from scratch on the same labels, with crops.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/tiny-imagenet-64x64.py',
    '../_base_/schedules/classify_30e.py',
    '../_base_/classification_runtime.py',
]
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(type='mmdiffrep.TimmBackbone', model='resnet18', small_images=True),
    head=dict(type='mmdiffrep.PooledHead', num_classes=_base_.num_classes),
)
