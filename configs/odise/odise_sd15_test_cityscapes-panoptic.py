# A model trained on COCO, asked for Cityscapes' 8 things and 11 stuffs: PQ. cityscapesscripts' createPanopticImgs.py writes the annotations.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py']
data_root = 'data/cityscapes'
ann_file = 'gtFine/cityscapes_panoptic_val.json'
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=ann_file,
        data_prefix=dict(img='leftImg8bit/val/', seg='gtFine/cityscapes_panoptic_val/'),
        vocabulary='cityscapes',
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=f'{data_root}/{ann_file}',
    seg_prefix=f'{data_root}/gtFine/cityscapes_panoptic_val/',
    seen_in='coco-panoptic',
)
test_evaluator = val_evaluator
