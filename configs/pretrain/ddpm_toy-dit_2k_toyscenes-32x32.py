_base_ = [
    '../_base_/networks/toy-dit.py',
    '../_base_/pretrain_toyscenes-32x32.py',
]
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(_base_.network, sample_size=32),
)
