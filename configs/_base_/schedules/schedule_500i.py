# 500 iterations of AdamW, warmed up, then falling to 0 (few labels, two cores).
_base_ = ['schedule_300i.py']
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=30),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=30, end=500),
]
train_cfg = dict(max_iters=500, val_interval=500)
