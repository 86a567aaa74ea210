# What every run on pairs or videos shares: nothing is trained, tools/test.py CONFIG needs no checkpoint.
default_scope = 'mmengine'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
test_cfg = dict()
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
