# The same network untrained: the floor that pre-training must clear.
_base_ = ['odise_toy-unet_1200i_toyscenes-64x64.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
