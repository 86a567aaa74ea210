# As in DDPM-Seg: Adam, 100 epochs of all labelled pixels at most; from the 5th on members stop by themselves (PixelEnsemble's patience).
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3, fused=True))
# LabelledPixels ends before
train_cfg = dict(type='IterBasedTrainLoop', max_iters=10**9, val_interval=10**9)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
