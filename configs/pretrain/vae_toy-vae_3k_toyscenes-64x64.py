# The autoencoder of ldm_toy-sd_4500i_toyscenes-64x64.py: crops of 64×64 from scenes of 64 to 128 pixels.
_base_ = [
    '../_base_/networks/toy-vae.py',
    '../_base_/pretrain_toyscenes-64x64.py',
]
model = dict(
    type='mmdiffrep.AutoencoderPretrainer', autoencoder=_base_.autoencoder, kl_weight=1e-4, gradient_weight=0.5
)
train_dataloader = dict(dataset=dict(short_side=(64, 128)))
max_iters = 3000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=4000),
]
val_evaluator = dict(bands=(0, 1))
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.002, gamma=10),
    dict(type='mmdiffrep.SaveDiffusersHook', interval=500, dtype='fp16'),
    dict(type='mmdiffrep.RandomStateHook'),
]
