# Photographs on two cores: the natural-image U-Net, names by saved CLIP embeddings, twelve classes held out.
_base_ = [
    '../_base_/models/odise-small.py',
    '../_base_/denoisers/natural-unet.py',
    '../_base_/datasets/coco-mini_open-panoptic-160x160.py',
    '../_base_/schedules/odise_1200i.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=64))
model = dict(backbone=backbone, **_base_.naming)
