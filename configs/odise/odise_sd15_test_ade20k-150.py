# A model trained on COCO, asked for ADE20K's 150 classes: mIoU.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py', '../_base_/datasets/semantic-test.py']
pipeline = _base_.semantic_pipeline
pipeline[2].update(reduce_zero_label=True)
model = dict(ask='ade20k-150', test_cfg=dict(panoptic=False, instance=False))
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmseg.ADE20KDataset',
        data_root='data/ade/ADEChallengeData2016',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU')
test_evaluator = val_evaluator
