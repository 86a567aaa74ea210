_base_ = [
    '../_base_/models/mask2former-panoptic-small.py',
    '../_base_/denoisers/toy-unet.py',
    '../_base_/datasets/toyscenes_panoptic-64x64.py',
    '../_base_/schedules/mask2former_300i.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=64))
classes = dict(num_things_classes=_base_.num_things, num_stuff_classes=_base_.num_stuff)
model = dict(
    backbone=backbone,
    panoptic_head=dict(
        **classes,
        loss_cls=dict(class_weight=[1.0] * sum(classes.values()) + [0.1]),
    ),
    panoptic_fusion_head=classes,
)
