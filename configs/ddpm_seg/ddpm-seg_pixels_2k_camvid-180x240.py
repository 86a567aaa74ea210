# The same MLPs on the colours alone.
_base_ = ['ddpm-seg_natural-unet_2k_camvid-180x240.py']
model = dict(
    backbone=dict(_delete_=True, type='mmdiffrep.RawPixels', strides=[1]),
    decode_head=dict(in_channels=[3]),
)
