# COCO 2017 panoptic with names as words. Download: https://cocodataset.org
_base_ = ['coco-panoptic-1024x1024.py']
vocabulary = 'coco-panoptic'
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'vocabulary')
train_pipeline = [
    *_base_.train_pipeline[:-1],
    dict(type='mmdet.PackDetInputs', meta_keys=(*meta, 'flip', 'flip_direction')),
]
test_pipeline = [*_base_.test_pipeline[:-1], dict(type='mmdet.PackDetInputs', meta_keys=meta)]
dataset = dict(type='mmdiffrep.PanopticDataset', vocabulary=vocabulary)
train_dataloader = dict(dataset=dict(dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmdiffrep.PanopticQuality')
test_evaluator = val_evaluator
del meta, dataset
