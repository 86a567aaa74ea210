# DiT-XL/2 of ImageNet at 256² (CC BY-NC 4.0), frozen, told the null class, read once at t = 81 (DDAE's for Tiny-ImageNet):
# three blocks at stride 16, and the autoencoder's encoder at stride 4.
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(type='mmdiffrep.DiT', pretrained='facebook/DiT-XL-2-256'),
    taps=[
        'vae.encoder.down_blocks.2.resnets.1:in',
        'transformer_blocks.6',
        'transformer_blocks.20',
        'transformer_blocks.13',
    ],
    timesteps=81,
    noise=dict(kind='shared', seed=0),
    dtype='bf16',
    image_mean=[123.675, 116.28, 103.53],
    image_std=[58.395, 57.12, 57.375],
)
