# 1.82M parameters; also the shipped mmdiffrep/toy-unet's.
network = dict(
    _class_name='UNet2DModel',
    sample_size=64,
    block_out_channels=(16, 32, 64, 96),
    layers_per_block=1,
    down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D'),
    up_block_types=('AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'),
    norm_num_groups=8,
    attention_head_dim=32,
)
