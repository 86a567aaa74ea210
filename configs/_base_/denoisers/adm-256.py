# guided-diffusion's unconditional ImageNet network at 256×256 (MIT). Its output blocks 5, 8, 11 (strides 8, 4, 2) and 2 (16).
# Download: https://openaipublic.blob.core.windows.net/diffusion/jul-2021/256x256_diffusion_uncond.pt (2.2 GB)
backbone = dict(
    type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(type='mmdiffrep.PixelUNet', pretrained='checkpoints/256x256_diffusion_uncond.pt'),
    taps=['adm:out.2', 'adm:out.5', 'adm:out.8', 'adm:out.11'],
    timesteps=50,
    noise=dict(kind='shared', seed=0),
    dtype=None,
    image_mean=[123.675, 116.28, 103.53],
    image_std=[58.395, 57.12, 57.375],
)
