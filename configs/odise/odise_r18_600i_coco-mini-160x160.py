# A stock backbone from scratch, all else equal.
_base_ = ['odise_natural-unet_600i_coco-mini-160x160.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmseg.ResNet',
        depth=18,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
    ),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
