# The same network untrained: the floor that pre-training must clear.
_base_ = ['diffusion_natural-unet_linear_300i_camvid-180x240.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
