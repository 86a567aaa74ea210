# mmdet's panoptic Mask2Former, with the decoders and losses of mmseg's; the backbone comes from another file.
_base_ = ['mask2former.py']
head = _base_.model.decode_head
OWN = (
    'type',
    'num_classes',
    'align_corners',
    'loss_cls',
    'train_cfg',
)  # what mmdet's says otherwise
preprocessor = dict(
    type='mmdet.DetDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_size_divisor=32,
    pad_mask=True,
    mask_pad_value=0,
    pad_seg=True,
    seg_pad_value=255,
    batch_augments=[
        dict(
            type='mmdet.BatchFixedSizePad',
            size=(1024, 1024),
            img_pad_value=0,
            pad_mask=True,
            mask_pad_value=0,
            pad_seg=True,
            seg_pad_value=255,
        )
    ],
)
data_preprocessor = dict(_delete_=True, **preprocessor)
model = dict(
    _delete_=True,
    type='mmdet.Mask2Former',
    data_preprocessor=preprocessor,
    panoptic_head=dict(
        type='mmdet.Mask2FormerHead',
        num_things_classes=80,
        num_stuff_classes=53,
        loss_cls={**head.loss_cls, 'class_weight': [1.0] * 133 + [0.1]},
        **{key: value for key, value in head.items() if key not in OWN},
    ),
    panoptic_fusion_head=dict(
        type='mmdet.MaskFormerFusionHead',
        num_things_classes=80,
        num_stuff_classes=53,
        loss_panoptic=None,
        init_cfg=None,
    ),
    train_cfg=head.train_cfg,
    test_cfg=dict(
        panoptic_on=True,
        semantic_on=False,
        instance_on=False,
        max_per_image=100,
        iou_thr=0.8,
        filter_low_score=True,
    ),
    init_cfg=None,
)
del head, OWN, preprocessor
