# The colours, averaged to 8×8.
_base_ = ['ddae_natural-unet_linear_15e_tiny-imagenet-64x64.py']
model = dict(
    backbone=dict(_delete_=True, type='mmdiffrep.RawPixels', strides=[1]),
    head=dict(in_channels=[3], pool=8),
)
