# 1000 iterations of AdamW, warmed up, then falling to 0 (few labels, two cores).
_base_ = ['schedule_300i.py']
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=50, end=1000),
]
train_cfg = dict(max_iters=1000, val_interval=1000)
