# The paper's setting: output blocks 5, 6, 7, 8, 12 at t = 50, 150, 250: 8448 channels; its network, and one noise for all images.
_base_ = [
    '../_base_/models/pixel-ensemble.py',
    '../_base_/denoisers/adm-256-lsun-bedroom.py',
    '../_base_/datasets/ddpm-seg_ade-bedroom-30-256x256.py',
    '../_base_/schedules/pixels_100e.py',
    '../_base_/pixel_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    taps=['adm:out.5', 'adm:out.6', 'adm:out.7', 'adm:out.8', 'adm:out.12'],
    timesteps=[50, 150, 250],
)
model = dict(
    backbone=backbone,
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
custom_hooks = [
    dict(type='mmdiffrep.RandomStateHook'),
    dict(type='mmdiffrep.PixelFeaturesHook', folder='work_dirs/features'),
]
