# The same network untrained: the floor that pre-training must clear.
_base_ = ['diffusion_toy-unet_linear_300i_toyscenes-64x64.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
