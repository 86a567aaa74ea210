# CIFAR-10 enlarged, for networks of 256×256.
_base_ = ['cifar10-32x32.py']
image_size = 256
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type='RandomCrop', size=32, padding=4),
            dict(type='RandomHorizontalFlip'),
            dict(type='Resize', size=image_size, antialias=True),
        ]
    )
)
val_dataloader = dict(dataset=dict(size=image_size))
test_dataloader = val_dataloader
