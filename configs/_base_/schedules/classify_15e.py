# DDAE's probe: Adam, cosine without warm-up, 15 epochs; 1e-3 for batches of 128 (times the number of GPUs).
train_cfg = dict(by_epoch=True, max_epochs=15, val_interval=5)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=15, convert_to_iter_based=True)]
