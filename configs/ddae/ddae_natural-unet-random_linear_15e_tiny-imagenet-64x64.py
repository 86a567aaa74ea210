# The same network, untrained.
_base_ = ['ddae_natural-unet_linear_15e_tiny-imagenet-64x64.py']
model = dict(backbone=dict(backbone=dict(denoiser=dict(random_seed=0))))
