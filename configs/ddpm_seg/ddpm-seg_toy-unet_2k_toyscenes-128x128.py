# 20 labelled images; another number or choice, and other initial weights and orders:
# --seed 1 --cfg-options train_dataloader.dataset.num_labels=5 train_dataloader.dataset.subset_seed=1
_base_ = [
    '../_base_/models/pixel-ensemble.py',
    '../_base_/denoisers/toy-unet.py',
    '../_base_/datasets/toyscenes-128x128.py',
    '../_base_/schedules/pixels_2k.py',
    '../_base_/pixel_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=[
        'up_blocks.0.attentions.1',
        'up_blocks.1.attentions.0',
        'up_blocks.1.attentions.1',
        'up_blocks.2.resnets.0',
        'up_blocks.2.resnets.1',
    ],
    timesteps=[10, 60, 150],
)
model = dict(
    backbone=backbone,
    decode_head=dict(in_channels=[96, 64, 64, 32, 32] * 3, num_classes=_base_.num_classes),
)
labelled = _base_.train_dataloader.dataset
labelled.update(
    num_labels=20,
    pipeline=[
        dict(type='mmcv.LoadImageFromFile'),
        dict(type='mmseg.LoadAnnotations'),
        dict(type='mmdiffrep.CheckLabels'),
        dict(type='mmdiffrep.IgnoreSmallClasses', min_pixels=20),
        dict(type='mmseg.PackSegInputs'),
    ],
)
train_dataloader = dict(
    batch_size=1,
    sampler=None,  # in order
    dataset=dict(
        _delete_=True, type='mmdiffrep.LabelledPixels', members=10, pixels=64, dataset=labelled
    ),
)
