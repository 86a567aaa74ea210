# 20 labelled images; another number or choice, and other initial weights and orders:
# --seed 1 --cfg-options train_dataloader.dataset.num_labels=5 train_dataloader.dataset.subset_seed=1
_base_ = [
    '../_base_/models/pixel-ensemble.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/camvid-180x240.py',
    '../_base_/schedules/pixels_2k.py',
    '../_base_/pixel_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=[
        'up_blocks.0.attentions.1', 'up_blocks.1.attentions.0', 'up_blocks.1.attentions.1',
        'up_blocks.2.resnets.0', 'up_blocks.2.resnets.1',
    ],  # fmt: skip
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
        dict(type='mmcv.Resize', scale=_base_.crop_size[::-1]),
        dict(type='mmdiffrep.IgnoreSmallClasses', min_pixels=20),
        dict(type='mmseg.PackSegInputs'),
    ],
)
train_dataloader = dict(
    batch_size=1,
    sampler=None,  # in order
    dataset=dict(_delete_=True, type='mmdiffrep.LabelledPixels', members=10, pixels=64, dataset=labelled),
)  # fmt: skip
