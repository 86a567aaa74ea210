# CIFAR-10 as CLASS/IMAGE in a folder or zip file: the last 500 images of each class are held out, to choose and compare by. The official binary
# files: data_root='data/cifar-10-batches-bin', part='train' and 'test', without first and last.
dataset_type = 'mmdiffrep.ImageClassification'
data_root = 'data/cifar10_train.zip'
num_classes = 10
image_size = 32
train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        last=4500,
        transforms=[
            dict(type='RandomCrop', size=image_size, padding=4),
            dict(type='RandomHorizontalFlip'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type=dataset_type, data_root=data_root, first=4500),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmdiffrep.ClassAccuracy', topk=(1, 5))
test_evaluator = val_evaluator
