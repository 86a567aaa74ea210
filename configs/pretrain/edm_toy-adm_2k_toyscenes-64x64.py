_base_ = [
    '../_base_/networks/toy-adm.py',
    '../_base_/pretrain_toyscenes-64x64.py',
]
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=_base_.network,
    schedule=dict(_class_name='EDMSchedule'),
)
val_evaluator = dict(bands=(0.002, 0.05, 0.2, 0.5, 2, 80))
