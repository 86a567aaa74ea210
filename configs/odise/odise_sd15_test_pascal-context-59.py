# A model trained on COCO, asked for Pascal Context's 59 classes: mIoU.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py', '../_base_/datasets/semantic-test.py']
pipeline = _base_.semantic_pipeline
pipeline[2].update(reduce_zero_label=True)
model = dict(ask='pascal-context-59', test_cfg=dict(panoptic=False, instance=False))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmseg.PascalContextDataset59',
        data_root='data/VOCdevkit/VOC2010',
        data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClassContext'),
        ann_file='ImageSets/SegmentationContext/val.txt',
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU')
test_evaluator = val_evaluator
