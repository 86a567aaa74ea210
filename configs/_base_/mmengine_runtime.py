# What runs have in common that belong to neither mmseg nor mmdet.
default_scope = 'mmengine'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
test_cfg = dict()
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # one an epoch, of which the best and the last stay
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2, rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
