# A model trained on COCO, asked for ADE20K's 847 classes: mIoU. Names and labels are the user's: a JSON list of names in the order of the labels
# (which count from 0 in images of 16 bits, 65535 to be ignored).
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py', '../_base_/datasets/semantic-test.py']
names = 'data/ade20k-full/classes-847.json'
model = dict(ask=names, test_cfg=dict(panoptic=False, instance=False))
pipeline = _base_.semantic_pipeline
pipeline[2] = dict(type='mmdiffrep.LoadWideAnnotations')
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmdiffrep.VocabularySegDataset',
        vocabulary=names,
        data_root='data/ade20k-full',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU', ignore_index=65535)
test_evaluator = val_evaluator
