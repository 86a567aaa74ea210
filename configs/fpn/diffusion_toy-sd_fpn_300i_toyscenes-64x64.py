_base_ = [
    '../_base_/models/fpn.py',
    '../_base_/denoisers/toy-sd.py',
    '../_base_/datasets/toyscenes-64x64.py',
    '../_base_/schedules/schedule_300i.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=64))
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=backbone,
    decode_head=dict(num_classes=_base_.num_classes),
)
