# ODISE's mask generator: mmdet's panoptic Mask2Former, whose masks are named by text embeddings. Xu et al., CVPR 2023.
_base_ = ['mask2former-panoptic.py']
stock = _base_.model.panoptic_head
CLOSED = (
    'type',
    'num_things_classes',
    'num_stuff_classes',
    'loss_cls',
)  # of a fixed list of classes
model = dict(
    _delete_=True,
    type='mmdiffrep.OpenVocabSegmentor',
    data_preprocessor=_base_.model.data_preprocessor,
    panoptic_head=dict(
        type='mmdiffrep.OpenVocabMask2FormerHead',
        **{
            **{key: value for key, value in stock.items() if key not in CLOSED},
            'in_channels': [512, 512, 512, 512],
        },
    ),
    train_cfg=_base_.model.train_cfg,
    test_cfg=dict(object_mask_thr=0.0, overlap_thr=0.8, max_per_image=100),
)
del stock, CLOSED
