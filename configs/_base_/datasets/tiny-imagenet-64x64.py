# Tiny-ImageNet's first 100 images a class, CLASS/IMAGE in a zip file: 80 to train on, 20 held out. The whole set, unpacked:
# data_root='data/tiny-imagenet-200', part='train', and last=450, first=450.
_base_ = ['cifar10-32x32.py']
data_root = 'data/tiny_imagenet_20k.zip'
num_classes = 200
image_size = 64
train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        last=80,
        transforms=[
            dict(type='RandomCrop', size=image_size, padding=4),
            dict(type='RandomHorizontalFlip'),
        ],
    )
)
val_dataloader = dict(dataset=dict(data_root=data_root, first=80))
test_dataloader = val_dataloader
