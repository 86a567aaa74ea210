# A model trained on COCO, asked for Pascal Context's 459 classes: mIoU. Names and labels are the user's: a JSON list of names in the order of the labels
# (which count from 0 in images of 16 bits, 65535 to be ignored).
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py', '../_base_/datasets/semantic-test.py']
names = 'data/pascal-context-459/classes-459.json'
model = dict(ask=names, test_cfg=dict(panoptic=False, instance=False))
pipeline = _base_.semantic_pipeline
pipeline[2] = dict(type='mmdiffrep.LoadWideAnnotations')
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmdiffrep.VocabularySegDataset',
        vocabulary=names,
        data_root='data/pascal-context-459',
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU', ignore_index=65535)
test_evaluator = val_evaluator
