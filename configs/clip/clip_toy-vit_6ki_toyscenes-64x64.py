# The shipped mmdiffrep/toy-clip.
_base_ = ['../_base_/captions_toyscenes-64x64.py']

model = dict(
    _delete_=True,
    type='mmdiffrep.ClipPretrainer',
    clip=dict(
        embed_dim=96,
        vision_cfg=dict(image_size=64, patch_size=8, width=96, layers=3, head_width=32, patch_dropout=0.5),
        text_cfg=dict(context_length=32, width=96, layers=2, heads=3),
    ),
    vocabulary={{_base_.vocabulary}},
    class_names={{_base_.class_names}},
)
max_iters = 6000
train_cfg = dict(max_iters=max_iters, val_interval=2000)
optim_wrapper = dict(optimizer=dict(lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=1000), logger=dict(interval=50))
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.005, gamma=10),
    dict(
        type='mmdiffrep.SaveClipHook', interval=1000, name='toy-clip', dtype='fp16',
        description='A small CLIP of captioned ToyScenes pictures and crops (drawn by this project; Apache-2.0). Data: '
        '`make_toyscenes.py data/toyscenes-pretrain --train 16000 --val 500 --val-heldout 0 --pairs 0 --seed 1`.',
    ),
    dict(type='mmdiffrep.RandomStateHook'),
]
