# The list has numbers for classes: no prompt.
_base_ = [
    '../_base_/models/point-matcher.py',
    '../_base_/denoisers/sd21-dift.py',
    '../_base_/datasets/pairs_pf-pascal-768x768.py',
    '../_base_/correspondence_runtime.py',
]
model = dict(backbone=_base_.backbone, size=768, prompt='')
