# Crops of 64×64 from scenes of 128×128, validated on whole scenes. python tools/make_toyscenes.py data/toyscenes
_base_ = ['toyscenes-128x128.py']
crop_size = (64, 64)
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='mmseg.RandomCrop', crop_size=crop_size),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmseg.PackSegInputs'),
        ]
    )
)
