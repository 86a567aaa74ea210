_base_ = [
    '../_base_/models/mask2former-panoptic.py',
    '../_base_/denoisers/vpd-sd15.py',
    '../_base_/datasets/coco-panoptic-1024x1024.py',
    '../_base_/schedules/mask2former_lsj-50e.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.denoiser.update(class_names=_base_.class_names)
backbone.adapter.update(strides=[4, 8, 16, 32], out_channels=256)
classes = dict(num_things_classes=_base_.num_things, num_stuff_classes=_base_.num_stuff)
model = dict(
    backbone=backbone,
    panoptic_head=dict(
        **classes,
        loss_cls=dict(class_weight=[1.0] * sum(classes.values()) + [0.1]),
    ),
    panoptic_fusion_head=classes,
)
