# Two cores: a head and words from nothing, at a higher rate than a whole network would bear.
_base_ = ['mask2former_300i.py']
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=50, end=1200),
]
train_cfg = dict(max_iters=1200, val_interval=1200)
