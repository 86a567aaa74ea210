# A model trained on COCO, asked for ADE20K's 150 classes: mIoU. Images are loaded by mmseg, with a short side of 640.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py']
model = dict(ask='ade20k-150', test_cfg=dict(panoptic=False, instance=False))
load_image = [
    dict(type='mmcv.LoadImageFromFile'),
    dict(type='mmcv.Resize', scale=(2560, 640), keep_ratio=True),
]
pack = dict(type='mmseg.PackSegInputs')
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmseg.ADE20KDataset',
        data_root='data/ade/ADEChallengeData2016',
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        # whether label 0 is nothing is the data set's to say
        pipeline=[*load_image, dict(type='mmseg.LoadAnnotations'), pack],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmdiffrep.SemanticIoU')
test_evaluator = val_evaluator
