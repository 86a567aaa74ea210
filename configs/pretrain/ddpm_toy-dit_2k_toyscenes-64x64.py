_base_ = [
    '../_base_/networks/toy-dit.py',
    '../_base_/pretrain_toyscenes-64x64.py',
]
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=_base_.network,
    timestep_power=2.0,
)
