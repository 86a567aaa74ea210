# A model trained on COCO, asked for Cityscapes' 19 classes: mIoU.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py', '../_base_/datasets/semantic-test.py']
pipeline = _base_.semantic_pipeline
model = dict(ask='cityscapes', test_cfg=dict(panoptic=False, instance=False))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmseg.CityscapesDataset',
        data_root='data/cityscapes',
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU')
test_evaluator = val_evaluator
