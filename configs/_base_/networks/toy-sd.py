# Stable Diffusion's layout in small: 16×16 latents of the toy autoencoder, texts by the toy CLIP.
network = dict(
    _class_name='UNet2DConditionModel',
    sample_size=16,
    in_channels=4,
    out_channels=4,
    block_out_channels=(32, 64, 128),
    layers_per_block=1,
    down_block_types=('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
    norm_num_groups=16,
    attention_head_dim=4,
    cross_attention_dim=96,
)
