# Unlabelled images of Tiny-ImageNet's train set and of CamVid's.
_base_ = ['../_base_/pretrain_runtime.py']

model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(
        sample_size=64,
        block_out_channels=(48, 96, 128, 128),
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
        size=64,
        sources=[
            dict(path='data/tiny_imagenet_20k.zip', short_side=(64, 80)),
            dict(path='data/camvid/images/train', short_side=(80, 200), repeat=14),
        ],
    )
)
