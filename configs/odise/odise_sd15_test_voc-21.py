# A model trained on COCO, asked for PASCAL VOC's 20 classes and the background: mIoU.
_base_ = ['odise_sd15_test_ade20k-150.py']
model = dict(ask='voc-21')
val_dataloader = dict(
    dataset=dict(
        type='mmseg.PascalVOCDataset',
        data_root='data/VOCdevkit/VOC2012',
        ann_file='ImageSets/Segmentation/val.txt',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    )
)
test_dataloader = val_dataloader
