# CamVid with crops of 320×320 (images are 360×480): a side that Stable Diffusion's 64 divides. One GPU of 8.
_base_ = ['camvid-240x240.py']
crop_size = (320, 320)
train_pipeline = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='mmcv.RandomResize', scale=(480, 360), ratio_range=(0.9, 2.0), keep_ratio=True),
    dict(type='mmseg.RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='mmcv.RandomFlip', prob=0.5),
    dict(type='mmseg.PhotoMetricDistortion'),
    dict(type='mmseg.PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8, num_workers=4, persistent_workers=True, dataset=dict(pipeline=train_pipeline)
)
class_names = [
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign symbol', 'fence', 'car', 'pedestrian', 'bicyclist',
]  # fmt: skip
