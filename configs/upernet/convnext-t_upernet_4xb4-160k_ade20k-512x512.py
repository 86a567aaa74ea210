_base_ = [
    '../_base_/models/upernet-512.py',
    '../_base_/models/convnext-t-backbone.py',
    '../_base_/datasets/ade20k-512x512.py',
    '../_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    decode_head=dict(in_channels=_base_.backbone_channels, num_classes=_base_.num_classes),
)
