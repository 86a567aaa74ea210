# The colours, averaged to 8×8: what a linear layer makes of them.
_base_ = ['ddae_cifar-unet_linear_15e_cifar10-32x32.py']
model = dict(
    backbone=dict(_delete_=True, type='mmdiffrep.RawPixels', strides=[1]),
    head=dict(in_channels=[3], pool=8),
)
