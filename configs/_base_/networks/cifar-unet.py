# 3.32M parameters, 32×32; also the shipped mmdiffrep/cifar-unet's.
_base_ = ['toy-unet.py']
network = dict(
    sample_size=32,
    block_out_channels=(24, 48, 96, 128),
    down_block_types=('DownBlock2D', 'DownBlock2D', 'AttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'AttnUpBlock2D', 'UpBlock2D', 'UpBlock2D'),
)
