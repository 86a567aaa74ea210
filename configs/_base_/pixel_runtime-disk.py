# pixel_runtime.py for features that do not fit in memory.
_base_ = ['pixel_runtime.py']
custom_hooks = [
    dict(type='mmdiffrep.RandomStateHook'),
    dict(type='mmdiffrep.PixelFeaturesHook', folder='work_dirs/features'),
]
