# The same network untrained: the floor that pre-training must clear.
_base_ = ['ddpm-seg_toy-unet_2k_toyscenes-128x128.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
