# mmseg's FPN segmentor; the backbone comes from another file.
_base_ = ['segmentor.py']
norm_cfg = dict(type='BN', requires_grad=True)
model = dict(
    neck=dict(type='mmseg.FPN', in_channels=[256, 256, 256, 256], out_channels=128, num_outs=4),
    decode_head=dict(
        type='mmseg.FPNHead',
        in_channels=[128, 128, 128, 128],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=64,
        dropout_ratio=0.1,
        num_classes=13,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
