# A model trained on COCO, asked for Pascal Context's 59 classes: mIoU.
_base_ = ['odise_sd15_test_ade20k-150.py']
model = dict(ask='pascal-context-59')
val_dataloader = dict(
    dataset=dict(
        type='mmseg.PascalContextDataset59',
        data_root='data/VOCdevkit/VOC2010',
        ann_file='ImageSets/SegmentationContext/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
    )
)
test_dataloader = val_dataloader
