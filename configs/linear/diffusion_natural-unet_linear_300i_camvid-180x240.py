_base_ = [
    '../_base_/models/linear.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/camvid-180x240.py',
    '../_base_/schedules/schedule_300i.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    adapter=dict(type='mmdiffrep.ConcatUpsample', stride=4, normalize='batch')
)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=backbone,
    decode_head=dict(num_classes=_base_.num_classes),
)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
