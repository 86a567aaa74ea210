# odise_1500i.py, shorter.
_base_ = ['odise_1500i.py']
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=50, end=1200),
]
train_cfg = dict(max_iters=1200, val_interval=1200)
