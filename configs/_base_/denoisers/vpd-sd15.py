# VPD (Zhao et al., ICCV 2023): Stable Diffusion 1.5 at t = 1 on the clean latent, which is not scaled. It is told the class
# names, adapted by a small trained network, and its cross-attention maps join the features of their stride.
# The U-Net is trained, at the tenth of the rate that the schedules give 'backbone', with fp32 weights under bf16 autocast;
# the autoencoder is not. The config that inherits this sets denoiser.class_names.
cross = '{}.transformer_blocks.0.attn2:probs'
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(
        type='mmdiffrep.StableDiffusion',
        pretrained='stable-diffusion-v1-5/stable-diffusion-v1-5',
        latent='mode',
        scale_latent=False,
    ),
    taps=[
        'up_blocks.3.attentions.2',
        'up_blocks.2.attentions.1',
        'up_blocks.1.attentions.1',
        'up_blocks.0.resnets.1',
        *[cross.format(f'down_blocks.1.attentions.{i}') for i in range(2)],  # stride 16
        *[cross.format(f'up_blocks.2.attentions.{i}') for i in range(3)],
        *[cross.format(f'down_blocks.2.attentions.{i}') for i in range(2)],  # stride 32
        *[cross.format(f'up_blocks.1.attentions.{i}') for i in range(3)],
    ],
    timesteps=1,
    noise=dict(kind='none'),
    conditioner=dict(type='mmdiffrep.TextAdapter'),
    adapter=dict(type='mmdiffrep.StrideConcat', average=[[4, 5, 6, 7, 8], [9, 10, 11, 12, 13]]),
    trainable=['conv_in', 'time_embedding', 'down_blocks', 'mid_block', 'up_blocks'],
    with_cp=True,
    dtype='bf16',
    image_mean=[123.675, 116.28, 103.53],
    image_std=[58.395, 57.12, 57.375],
)
