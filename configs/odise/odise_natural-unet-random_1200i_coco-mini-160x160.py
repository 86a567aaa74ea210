# The same network untrained: the floor that pre-training must clear.
_base_ = ['odise_natural-unet_1200i_coco-mini-160x160.py']
model = dict(backbone=dict(denoiser=dict(random_seed=0)))
