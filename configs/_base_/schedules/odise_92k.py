# ODISE's: AdamW 1e-4, 92188 iterations of 64 images, the rate a tenth at 88.9 % and 96.3 %, 250 steps of warm-up; no weight decay on norms
# and biases.
_base_ = ['mask2former_160k.py']
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
max_iters = 92188
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=250),
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=max_iters,
        milestones=[81955, 88777],
        gamma=0.1,
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=5000)
