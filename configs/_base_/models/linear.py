# A linear probe: one 1×1 convolution on the features at a quarter of the image's size.
_base_ = ['segmentor.py']
data_preprocessor = dict(test_cfg=dict(size_divisor=8))
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(
        type='mmseg.FCNHead',
        in_channels=192,
        channels=192,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0,
        num_classes=13,
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
