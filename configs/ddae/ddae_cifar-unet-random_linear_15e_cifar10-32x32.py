# The same network, untrained.
_base_ = ['ddae_cifar-unet_linear_15e_cifar10-32x32.py']
model = dict(backbone=dict(backbone=dict(denoiser=dict(random_seed=0))))
