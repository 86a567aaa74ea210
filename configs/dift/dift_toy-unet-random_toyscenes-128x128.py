# The same network, untrained.
_base_ = ['dift_toy-unet_toyscenes-128x128.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
