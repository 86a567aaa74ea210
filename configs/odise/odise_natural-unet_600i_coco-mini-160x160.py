# Photographs on two cores: the natural-image U-Net, names by saved CLIP embeddings, twelve classes held out.
_base_ = [
    '../_base_/models/odise-small.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/coco-mini_open-panoptic-160x160.py',
    '../_base_/schedules/mask2former_300i.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=64))
model = dict(
    backbone=backbone,
    vocabulary=_base_.vocabulary,
    held_out=_base_.held_out,
    text=dict(_delete_=True, **_base_.words),
    clip=None,
)
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=50, end=max_iters),
]
