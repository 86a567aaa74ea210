_base_ = [
    '../_base_/models/mask2former.py',
    '../_base_/denoisers/sd15-odise.py',
    '../_base_/datasets/camvid-320x320.py',
    '../_base_/schedules/mask2former_20k.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256))
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=backbone,
    decode_head=dict(
        num_classes=_base_.num_classes,
        loss_cls=dict(class_weight=[1.0] * _base_.num_classes + [0.1]),
    ),
)
