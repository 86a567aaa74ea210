# The same MLPs on the pyramid of an untrained, frozen ResNet-18; one that is trained on the labels: configs/fpn.
_base_ = [
    '../_base_/models/pixel-ensemble.py',
    '../_base_/models/r18-backbone.py',
    '../_base_/datasets/camvid-180x240.py',
    '../_base_/schedules/pixels_2k.py',
    '../_base_/pixel_runtime.py',
]
backbone = _base_.backbone
backbone.update(frozen_stages=4, norm_eval=True)
model = dict(
    backbone=backbone,
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=_base_.num_classes),
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
    dataset=dict(
        _delete_=True, type='mmdiffrep.LabelledPixels', members=10, pixels=64, dataset=labelled
    ),
)
