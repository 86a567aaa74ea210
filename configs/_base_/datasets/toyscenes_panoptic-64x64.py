# ToyScenes' COCO-panoptic annotations: crops of 64×64 from scenes of 128×128. python tools/make_toyscenes.py data/toyscenes
dataset_type = 'mmdet.CocoPanopticDataset'
data_root = 'data/toyscenes'
crop_size = (64, 64)
thing_classes = [
    f'{colour} {shape}'
    for colour in ('red', 'orange', 'yellow', 'green', 'blue', 'purple')
    for shape in ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
]
stuff_classes = ['sky', 'water', 'grass', 'sand', 'road', 'brick', 'wood']
class_names = thing_classes + stuff_classes
num_things, num_stuff = len(thing_classes), len(stuff_classes)
metainfo = dict(
    classes=class_names,
    thing_classes=thing_classes,
    stuff_classes=stuff_classes,
    palette=[((37 * i) % 256, (91 * i + 60) % 256, (151 * i + 120) % 256) for i in range(43)],
)
train_pipeline = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmdet.LoadPanopticAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    dict(type='mmdet.RandomCrop', crop_size=crop_size, allow_negative_crop=True),
    dict(type='mmdet.RandomFlip', prob=0.5),
    dict(type='mmdet.PackDetInputs'),
]
test_pipeline = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmdet.LoadPanopticAnnotations'),
    dict(
        type='mmdet.PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/panoptic_train.json',
        data_prefix=dict(img='images/train/', seg='annotations/panoptic_train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/panoptic_val.json',
        data_prefix=dict(img='images/val/', seg='annotations/panoptic_val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type='mmdet.CocoPanopticMetric',
    ann_file=f'{data_root}/annotations/panoptic_val.json',
    seg_prefix=f'{data_root}/annotations/panoptic_val/',
)
test_evaluator = val_evaluator
