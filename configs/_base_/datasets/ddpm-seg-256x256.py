# What the six data sets of DDPM-Seg share: few labelled training images, classes with fewer than 20 pixels in an image ignored,
# two metrics, mIoU (mmseg's) and ddpm_seg/mIoU (the paper's).
# Download: datasets.tar.gz (47 MB) of https://github.com/yandex-research/ddpm-segmentation, unpack, then
# python tools/convert_ddpm_seg.py datasets, which writes data/ddpm-seg/NAME/{images,labels}/{train,test}/*.png.
dataset_type = 'mmdiffrep.SegFolder'
crop_size = (256, 256)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        img_suffix='.png',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        pipeline=[
            dict(type='mmcv.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations'),
            dict(type='mmdiffrep.CheckLabels'),
            dict(type='mmdiffrep.IgnoreSmallClasses', min_pixels=20),
            dict(type='mmseg.PackSegInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        img_suffix='.png',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images/test', seg_map_path='labels/test'),
        pipeline=[
            dict(type='mmcv.LoadImageFromFile'),
            dict(type='mmseg.LoadAnnotations'),
            dict(type='mmdiffrep.CheckLabels'),
            dict(type='mmseg.PackSegInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(type='mmseg.IoUMetric', iou_metrics=['mIoU']),
    dict(type='mmdiffrep.DDPMSegIoU'),
]
test_evaluator = val_evaluator
