# The paper's setting.
_base_ = [
    '../_base_/models/pixel-ensemble.py',
    '../_base_/denoisers/adm-256-lsun-bedroom.py',
    '../_base_/datasets/ddpm-seg_ade-bedroom-30-256x256.py',
    '../_base_/schedules/pixels_100e.py',
    '../_base_/pixel_runtime-disk.py',
]
model = dict(
    backbone=_base_.backbone,
    decode_head=dict(in_channels=[1024, 512, 512, 512, 256] * 3, num_classes=_base_.num_classes),
)
labelled = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=1,
    sampler=None,  # in order
    dataset=dict(
        _delete_=True, type='mmdiffrep.LabelledPixels', members=10, pixels=64, dataset=labelled
    ),
)
