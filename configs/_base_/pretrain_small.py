# Pre-training on two CPU cores: small batches, no worker processes, a picture of samples now and then.
_base_ = ['pretrain_runtime.py']
model = dict(channels_last=False)
train_dataloader = dict(batch_size=8, num_workers=0, persistent_workers=False)
max_iters = 2000
train_cfg = dict(max_iters=max_iters, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.002, gamma=10),
    dict(type='mmdiffrep.SaveDiffusersHook', interval=500, dtype='fp16'),
    dict(type='mmdiffrep.SampleHook', interval=1000, count=16, steps=50),
    dict(type='mmdiffrep.RandomStateHook'),
]
default_hooks = dict(checkpoint=dict(interval=500), logger=dict(interval=50))
