# The shipped U-Net of CIFAR-10, frozen, read at t = 50 in the middle of its way up (8×8, 96 channels).
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(type='mmdiffrep.PixelUNet', pretrained='mmdiffrep/cifar-unet'),
    taps=['up_blocks.1.attentions.1'],
    timesteps=50,
    noise=dict(kind='shared', seed=0),
    image_mean=[0.0] * 3,
    image_std=[1.0] * 3,
)
