# The shipped latent U-Net with an empty prompt, read once at t = 50 at strides 16, 8 and 4, and its autoencoder at stride 2.
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(type='mmdiffrep.StableDiffusion', pretrained='mmdiffrep/toy-sd', prompt=''),
    taps=[
        'up_blocks.0.resnets.1',
        'up_blocks.1.attentions.1',
        'up_blocks.2.attentions.1',
        'vae.encoder.down_blocks.1.resnets.0',
    ],
    timesteps=50,
    noise=dict(kind='shared', seed=0),
    image_mean=[123.675, 116.28, 103.53],
    image_std=[58.395, 57.12, 57.375],
)
