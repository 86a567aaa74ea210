# A handful of COCO's photographs in COCO's own layout (data/coco_panoptic_mini/{train2017,val2017,annotations}), twelve classes held out.
# Names by saved embeddings: a (133, D) .npy and a JSON list of the 133 names.
_base_ = ['coco-open-panoptic-1024x1024.py']
data_root = 'data/coco_panoptic_mini'
crop_size = (160, 160)
held_out = [
    'wine glass', 'boat', 'bus', 'tv', 'bird', 'zebra', 'carrot', 'bed',
    'grass', 'sea', 'snow', 'road',
]  # fmt: skip
# of a model: what it is trained on, in which words; there is no image tower to these embeddings
naming = dict(
    vocabulary=_base_.vocabulary,
    held_out=held_out,
    text=dict(
        _delete_=True,
        encoder=dict(
            kind='saved',
            embeddings='data/text_embeddings/coco_panoptic133_clip_vitb16.npy',
            names='data/text_embeddings/coco_panoptic133_names.json',
        ),
    ),
    clip=None,
)
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type='mmcv.RandomResize', scale=(320, 176), ratio_range=(0.9, 1.5), keep_ratio=True
)
train_pipeline[3] = dict(type='mmdet.RandomCrop', crop_size=crop_size, allow_negative_crop=True)
train_pipeline[4] = dict(type='mmdet.RandomFlip', prob=0.5)
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(320, 192))
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, held_out=held_out, filter_cfg=None, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='mmdiffrep.PanopticQuality',
        ann_file=f'{data_root}/annotations/panoptic_val2017.json',
        seg_prefix=f'{data_root}/annotations/panoptic_val2017/',
        unseen=held_out,
    ),
    dict(type='mmdiffrep.SemanticIoU'),
]
test_evaluator = val_evaluator
