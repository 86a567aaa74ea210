# A model trained on COCO, asked for PASCAL VOC's 20 classes and the background: mIoU.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py', '../_base_/datasets/semantic-test.py']
pipeline = _base_.semantic_pipeline
model = dict(ask='voc-21', test_cfg=dict(panoptic=False, instance=False))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmseg.PascalVOCDataset',
        data_root='data/VOCdevkit/VOC2012',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
        ann_file='ImageSets/Segmentation/val.txt',
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU')
test_evaluator = val_evaluator
