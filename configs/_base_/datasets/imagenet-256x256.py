# ImageNet-1k as data/imagenet/{train,val}/WNID/IMAGE.JPEG, brought by the user.
_base_ = ['cifar10-32x32.py']
data_root = 'data/imagenet'
num_classes = 1000
image_size = 256
train_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        data_root=data_root,
        part='train',
        last=None,
        transforms=[
            dict(type='RandomResizedCrop', size=image_size, scale=(0.8, 1.0)),
            dict(type='RandomHorizontalFlip'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    dataset=dict(
        data_root=data_root,
        part='val',
        first=0,
        short_side=image_size,
        transforms=[dict(type='CenterCrop', size=image_size)],
    ),
)
test_dataloader = val_dataloader
