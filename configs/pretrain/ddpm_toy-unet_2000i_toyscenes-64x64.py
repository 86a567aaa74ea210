# First stage of the shipped mmdiffrep/toy-unet, on scenes of 64×64. Data: python tools/make_toyscenes.py data/toyscenes-pretrain-64 --train 16000 --val 0 --val-heldout 0 --pairs 0 --size 64
_base_ = ['../_base_/pretrain_runtime.py']

model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(
        sample_size=64,
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'),
        up_block_types=('AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'),
        norm_num_groups=8,
        attention_head_dim=32,
    ),
)
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmdiffrep.ImageFolder',
        sources=['data/toyscenes-pretrain-64/images/train'],
        size=64,
    )
)

max_iters = 2000
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.005, gamma=10),
    dict(
        type='mmdiffrep.SaveDiffusersHook',
        interval=250,
        dtype='fp16',
        description='A small DDPM of ToyScenes pictures at 64×64 (drawn by this project; Apache-2.0).',
    ),
    dict(type='mmdiffrep.RandomStateHook'),
]
