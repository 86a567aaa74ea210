_base_ = [
    '../_base_/models/upernet-512.py',
    '../_base_/denoisers/sd15.py',
    '../_base_/datasets/cityscapes-512x1024.py',
    '../_base_/schedules/schedule_80k.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256))
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=backbone,
    decode_head=dict(num_classes=_base_.num_classes),
)
