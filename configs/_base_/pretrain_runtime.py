# Generative pre-training: EMA, cosine rate with a warm-up. On a GPU add --amp bf16 (tools/train.py).
default_scope = 'mmengine'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
max_iters = 30000
train_cfg = dict(by_epoch=False, max_iters=max_iters)
train_dataloader = dict(
    batch_size=256,
    num_workers=7,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=7e-4, betas=(0.9, 0.99), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=500, end=max_iters),
]
model = dict(channels_last=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.0005, gamma=10),
    dict(type='mmdiffrep.SaveDiffusersHook', interval=2000, dtype='fp16'),
    dict(type='mmdiffrep.SampleHook', interval=2000, count=16, steps=50),
    dict(type='mmdiffrep.RandomStateHook'),
]
log_processor = dict(by_epoch=False)
env_cfg = dict(cudnn_benchmark=True)
# every process draws timesteps and noise of its own
randomness = dict(seed=0, diff_rank_seed=True)
