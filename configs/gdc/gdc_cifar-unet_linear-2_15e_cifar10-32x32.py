# Pooled to 2×2.
_base_ = ['../ddae/ddae_cifar-unet_linear_15e_cifar10-32x32.py']
model = dict(head=dict(pool=2))
