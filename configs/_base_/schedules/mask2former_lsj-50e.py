# 50 epochs of COCO's training images in batches of 16, the rate a tenth at 88.9 % and 96.3 %.
_base_ = ['mask2former_160k.py']
param_scheduler = [
    dict(
        type='MultiStepLR',
        by_epoch=False,
        begin=0,
        end=368750,
        milestones=[327778, 355092],
        gamma=0.1,
    ),
]
train_cfg = dict(max_iters=368750, val_interval=36875)
