# A model trained on COCO, asked for Cityscapes' 19 classes: mIoU.
_base_ = ['odise_sd15_test_ade20k-150.py']
model = dict(ask='cityscapes')
val_dataloader = dict(
    dataset=dict(
        type='mmseg.CityscapesDataset',
        data_root='data/cityscapes',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    )
)
test_dataloader = val_dataloader
