# Tiny-ImageNet enlarged, for networks of 256×256.
_base_ = ['tiny-imagenet-64x64.py']
image_size = 256
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type='RandomCrop', size=64, padding=4),
            dict(type='RandomHorizontalFlip'),
            dict(type='Resize', size=image_size, antialias=True),
        ]
    )
)
val_dataloader = dict(dataset=dict(size=image_size))
test_dataloader = val_dataloader
