# What every run on pairs or videos shares. Without a neck nothing is trained: tools/test.py CONFIG needs no checkpoint.
_base_ = ['mmengine_runtime.py']
default_hooks = dict(checkpoint=dict(save_best='pck/box-per-point@0.1'))
