# The same MLPs on the colours alone.
_base_ = ['ddpm-seg_toy-unet_2k_toyscenes-128x128.py']
model = dict(
    backbone=dict(_delete_=True, type='mmdiffrep.RawPixels', strides=[1]),
    decode_head=dict(in_channels=[3]),
)
