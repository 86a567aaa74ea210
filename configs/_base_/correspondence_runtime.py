# What every run on pairs or videos shares. Without a neck nothing is trained: tools/test.py CONFIG needs no checkpoint.
default_scope = 'mmengine'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
test_cfg = dict()
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    param_scheduler=dict(type='ParamSchedulerHook'),
    # of a neck that is trained
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=2,
        save_best='pck/box-per-point@0.1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
