# The shipped U-Net of photographs, frozen, read once at t = 10 at strides 8, 4 and 2.
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(type='mmdiffrep.PixelUNet', pretrained='mmdiffrep/natural-unet'),
    taps=['up_blocks.0.attentions.1', 'up_blocks.1.attentions.1', 'up_blocks.2.resnets.1'],
    timesteps=10,
    noise=dict(kind='shared', seed=0),
    image_mean=[123.675, 116.28, 103.53],
    image_std=[58.395, 57.12, 57.375],
)
