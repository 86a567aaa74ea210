# Stable Diffusion 1.5, frozen, told the empty text, read once at t = 50: the autoencoder's encoder at stride 4, the
# U-Net's up path at 8, 16 and 32. The hub id is a mirror with the original weights: docs/weights.md
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(
        type='mmdiffrep.StableDiffusion',
        pretrained='stable-diffusion-v1-5/stable-diffusion-v1-5',
        prompt='',
    ),
    taps=['vae.encoder.down_blocks.2.resnets.1:in', 'up_blocks.0', 'up_blocks.1', 'up_blocks.2'],
    timesteps=50,
    noise=dict(kind='shared', seed=0),
    dtype='bf16',
    image_mean=[123.675, 116.28, 103.53],
    image_std=[58.395, 57.12, 57.375],
)
