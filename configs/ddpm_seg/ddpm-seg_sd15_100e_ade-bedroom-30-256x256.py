# The paper's timesteps; the taps are those of the other methods' configs.
_base_ = [
    '../_base_/models/pixel-ensemble.py',
    '../_base_/denoisers/sd15.py',
    '../_base_/datasets/ddpm-seg_ade-bedroom-30-256x256.py',
    '../_base_/schedules/pixels_100e.py',
    '../_base_/pixel_runtime-disk.py',
]
backbone = _base_.backbone
backbone.update(timesteps=[50, 150, 250])
model = dict(
    backbone=backbone,
    decode_head=dict(
        in_channels=[512, 1280, 1280, 640] + [1280, 1280, 640] * 2, num_classes=_base_.num_classes
    ),
)
labelled = _base_.train_dataloader.dataset
train_dataloader = dict(
    batch_size=1,
    sampler=None,  # in order
    dataset=dict(
        _delete_=True, type='mmdiffrep.LabelledPixels', members=10, pixels=64, dataset=labelled
    ),
)
