# A stock backbone from scratch, all else equal.
_base_ = [
    '../_base_/models/odise-small.py',
    '../_base_/models/r18-backbone.py',
    '../_base_/datasets/toyscenes_open-panoptic-64x64.py',
    '../_base_/schedules/odise_1200i.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=_base_.backbone,
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
    vocabulary=_base_.vocabulary,
)
