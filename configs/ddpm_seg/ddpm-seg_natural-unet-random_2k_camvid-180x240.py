# The same network untrained: the floor that pre-training must clear.
_base_ = ['ddpm-seg_natural-unet_2k_camvid-180x240.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
