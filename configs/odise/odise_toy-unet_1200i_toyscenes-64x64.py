_base_ = [
    '../_base_/models/odise-small.py',
    '../_base_/denoisers/toy-unet.py',
    '../_base_/datasets/toyscenes_open-panoptic-64x64.py',
    '../_base_/schedules/odise_1200i.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.update(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=64))
model = dict(backbone=backbone, vocabulary=_base_.vocabulary)
