# The FPN segmentor with the widths of mmseg's own configs.
_base_ = ['fpn.py']
model = dict(
    neck=dict(out_channels=256),
    decode_head=dict(in_channels=[256, 256, 256, 256], channels=128),
)
