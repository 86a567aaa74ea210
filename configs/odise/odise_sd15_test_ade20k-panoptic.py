# A model trained on COCO, asked for ADE20K's 100 things and 50 stuffs: PQ, and mIoU by mmdet's metric.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py']
data_root = 'data/ADEChallengeData2016'
ann_file = 'ade20k_panoptic_val.json'
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file=ann_file,
        data_prefix=dict(img='images/validation/', seg='ade20k_panoptic_val/'),
        vocabulary='ade20k-panoptic',
    )
)
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='mmdiffrep.PanopticQuality',
        ann_file=f'{data_root}/{ann_file}',
        seg_prefix=f'{data_root}/ade20k_panoptic_val/',
        seen_in='coco-panoptic',
    ),
    dict(type='mmdet.SemSegMetric', iou_metrics=['mIoU']),
]
test_evaluator = val_evaluator
