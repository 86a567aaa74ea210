_base_ = [
    '../_base_/models/linear.py',
    '../_base_/datasets/toyscenes-64x64.py',
    '../_base_/schedules/schedule_300i.py',
    '../_base_/default_runtime.py',
]
model = dict(
    backbone=dict(type='mmdiffrep.RawPixels', strides=[4]),
    decode_head=dict(in_channels=3, channels=3),
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
