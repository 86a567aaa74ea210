_base_ = [
    '../_base_/models/fpn-256.py',
    '../_base_/models/r50-backbone.py',
    '../_base_/datasets/ade20k-512x512.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    neck=dict(in_channels=_base_.backbone_channels),
    decode_head=dict(num_classes=_base_.num_classes),
)
