_base_ = [
    '../_base_/models/point-matcher.py',
    '../_base_/denoisers/adm-256-dift.py',
    '../_base_/datasets/pairs_spair-71k-768x768.py',
    '../_base_/correspondence_runtime.py',
]
model = dict(backbone=_base_.backbone, size=512)
