# Guided-diffusion's architecture in small: scale-shift norm, ResBlocks that halve and double, attention at 1/4 and 1/8.
network = dict(
    _class_name='ADM',
    image_size=64,
    model_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 1, 2, 3),
    attention_resolutions=(4, 8),
    num_head_channels=32,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
