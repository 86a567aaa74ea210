# The shipped mmdiffrep/cifar-unet, on one CPU core. CIFAR-10's first 4500 images a class; the other 500 are left to score with.
_base_ = ['../_base_/networks/cifar-unet.py', '../_base_/pretrain_small.py']
model = dict(type='mmdiffrep.DenoisingPretrainer', network=_base_.network, timestep_power=2.0)
images = dict(type='mmdiffrep.ImageFolder', sources='data/cifar10_train.zip', size=32, labels=True)
train_dataloader = dict(batch_size=32, dataset=dict(last=4500, **images))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(first=4500, last=4600, random=False, **images),
)
val_evaluator = dict(type='mmdiffrep.TimestepLoss')
val_cfg = dict()
max_iters = 5500
train_cfg = dict(max_iters=max_iters, val_interval=1000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
