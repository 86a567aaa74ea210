# What every classifier's run shares: epochs, top-1 and top-5, a confusion matrix, one checkpoint an epoch of which the best and last stay.
default_scope = 'mmengine'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=2,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='mmdiffrep.RandomStateHook'), dict(type='mmdiffrep.ConfusionMatrixHook')]
log_level = 'INFO'
env_cfg = dict(cudnn_benchmark=True)
randomness = dict(seed=0)
load_from = None
resume = False
