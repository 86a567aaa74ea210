# The same in a size that trains on two cores, named by the toy CLIP.
_base_ = ['mask2former-panoptic-small.py']
stock = _base_.model.panoptic_head
CLOSED = ('type', 'num_things_classes', 'num_stuff_classes', 'loss_cls')
toy_clip = 'mmdiffrep/toy-clip'
model = dict(
    _delete_=True,
    type='mmdiffrep.OpenVocabSegmentor',
    data_preprocessor=_base_.model.data_preprocessor,
    panoptic_head=dict(
        type='mmdiffrep.OpenVocabMask2FormerHead',
        embed_channels=64,
        **{key: value for key, value in stock.items() if key not in CLOSED},
    ),
    text=dict(encoder=dict(kind='open_clip', name=toy_clip)),
    # it was trained on bare names, and on things that fill its input
    clip=dict(
        kind='attention', name=toy_clip, templates='none', image_size=128, alpha=0.3, beta=0.7
    ),
    train_cfg=_base_.model.train_cfg,
    test_cfg=dict(object_mask_thr=0.0, overlap_thr=0.8, max_per_image=30),
)
del stock, CLOSED, toy_clip
