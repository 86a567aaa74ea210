# GDC's: SGD without momentum, a tenth of the rate every 7 of 28 epochs; the linear head's rate.
train_cfg = dict(by_epoch=True, max_epochs=28, val_interval=7)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-2))
param_scheduler = [dict(type='MultiStepLR', milestones=[7, 14, 21], gamma=0.1)]
