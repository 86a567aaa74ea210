# For few labels: --cfg-options train_dataloader.batch_size=1 train_dataloader.dataset.num_labels=20 train_dataloader.dataset.subset_seed=0
_base_ = [
    '../_base_/models/fpn.py',
    '../_base_/models/r18-backbone.py',
    '../_base_/datasets/toyscenes-128x128.py',
    '../_base_/schedules/schedule_500i.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=_base_.backbone,
    neck=dict(in_channels=[64, 128, 256, 512]),
    decode_head=dict(num_classes=_base_.num_classes),
)
