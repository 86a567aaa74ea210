# A stock backbone, all else equal.
_base_ = [
    '../_base_/models/odise.py',
    '../_base_/models/odise-words.py',
    '../_base_/models/swin-t-backbone.py',
    '../_base_/datasets/coco-open-panoptic-1024x1024.py',
    '../_base_/schedules/odise_92k.py',
    '../_base_/default_runtime_det.py',
]
model = dict(
    backbone=_base_.backbone,
    panoptic_head=dict(in_channels=_base_.backbone_channels),
    vocabulary=_base_.vocabulary,
    text=_base_.words,
    clip=_base_.clip_branch,
)
train_dataloader = dict(batch_size=8)
