_base_ = ['mask2former_160k.py']
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=1500, end=90000),
]
train_cfg = dict(max_iters=90000, val_interval=9000)
