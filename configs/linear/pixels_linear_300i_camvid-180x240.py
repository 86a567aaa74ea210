_base_ = [
    '../_base_/models/linear.py',
    '../_base_/datasets/camvid-180x240.py',
    '../_base_/schedules/schedule_300i.py',
    '../_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(type='mmdiffrep.RawPixels', strides=[4]),
    decode_head=dict(in_channels=3, channels=3, num_classes=_base_.num_classes),
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
