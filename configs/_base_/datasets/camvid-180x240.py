# CamVid read at half its size, scored at its own: for two CPU cores.
_base_ = ['camvid-240x240.py']
crop_size = (180, 240)
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(type='Resize', scale=crop_size[::-1]),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmseg.PackSegInputs'),
        ]
    ),
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=crop_size[::-1]),
            dict(type='LoadAnnotations'),  # not resized
            dict(type='mmseg.PackSegInputs'),
        ]
    )
)
test_dataloader = val_dataloader
