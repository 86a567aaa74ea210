# Hyperfeatures' Adam, with a cosine, 4 epochs.
train_cfg = dict(by_epoch=True, max_epochs=4, val_interval=4)
val_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=4, convert_to_iter_based=True)]
custom_hooks = [dict(type='mmdiffrep.RandomStateHook')]
