# 80000 iterations of AdamW, warmed up, then falling to 0 (large data). Pre-trained weights that are trained too learn at a
# tenth of the rate; the adapter and the conditioner inside the backbone begin from nothing and learn at all of it.
sync_bn = 'torch'
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'backbone.adapter': dict(lr_mult=1.0),
            'backbone.conditioner': dict(lr_mult=1.0),
        },
        norm_decay_mult=0.0,
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=1500, end=80000),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=80000, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
