_base_ = [
    '../_base_/networks/toy-adm.py',
    '../_base_/pretrain_toyscenes-32x32.py',
]
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(_base_.network, image_size=32),
    schedule=dict(_class_name='EDMSchedule'),
)
val_evaluator = dict(bands=(0.002, 0.05, 0.2, 0.5, 2, 80))
