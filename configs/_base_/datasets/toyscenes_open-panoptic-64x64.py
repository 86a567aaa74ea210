# ToyScenes drawn at 64×64, trained on 30 of 36 colour–shape things; the other six are in the validation scenes alone. Data:
# python tools/make_toyscenes.py data/toyscenes-64 --train 2000 --val 200 --val-heldout 200 --pairs 0 --size 64
_base_ = ['toyscenes_panoptic-64x64.py']
data_root = 'data/toyscenes-64'
vocabulary = 'toyscenes-seen'
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'vocabulary')
train_pipeline = [
    *_base_.train_pipeline[:2],  # whole scenes, as they are asked about
    dict(type='mmdet.RandomFlip', prob=0.5),
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=(*meta, 'flip', 'flip_direction'),
    ),
]
test_pipeline = [*_base_.test_pipeline[:-1], dict(type='mmdet.PackDetInputs', meta_keys=meta)]
train_dataloader = dict(
    dataset=dict(
        type='mmdiffrep.PanopticDataset',
        data_root=data_root,
        vocabulary=vocabulary,
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type='mmdiffrep.PanopticDataset',
        data_root=data_root,
        vocabulary='toyscenes',
        ann_file='annotations/panoptic_val_heldout.json',
        data_prefix=dict(img='images/val_heldout/', seg='annotations/panoptic_val_heldout/'),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type='mmdiffrep.PanopticQuality',
    ann_file=f'{data_root}/annotations/panoptic_val_heldout.json',
    seg_prefix=f'{data_root}/annotations/panoptic_val_heldout/',
    seen_in=vocabulary,
)
test_evaluator = val_evaluator
del meta
