_base_ = [
    '../_base_/models/fpn-256.py',
    '../_base_/denoisers/vpd-sd15.py',
    '../_base_/datasets/ade20k-512x512.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.denoiser.update(class_names=_base_.class_names)
channels = [320, 640 + _base_.num_classes, 1280 + _base_.num_classes, 1280]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=backbone,
    neck=dict(in_channels=channels),  # at strides 8, 16, 32, 64
    decode_head=dict(num_classes=_base_.num_classes),
)
