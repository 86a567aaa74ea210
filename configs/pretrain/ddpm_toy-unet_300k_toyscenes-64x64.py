# The shipped mmdiffrep/toy-unet. Data: python tools/make_toyscenes.py data/toyscenes-pretrain --train 40000 --val 0 --val-heldout 0 --pairs 0
_base_ = ['../_base_/pretrain_runtime.py']

model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    unet=dict(
        sample_size=64,
        block_out_channels=(32, 64, 96, 128),
        layers_per_block=1,
        down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'),
        up_block_types=('AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'),
        norm_num_groups=16,
        attention_head_dim=32,
    ),
)
train_dataloader = dict(
    dataset=dict(
        type='mmdiffrep.ImageFolder',
        sources=['data/toyscenes-pretrain/images/train'],
        size=64,
        short_side=(64, 128),
    )
)
