# The shipped mmdiffrep/natural-unet, on one CPU core. Unlabelled images of Tiny-ImageNet's train set and of CamVid's.
_base_ = ['../_base_/networks/toy-unet.py', '../_base_/pretrain_small.py']
model = dict(type='mmdiffrep.DenoisingPretrainer', network=_base_.network, timestep_power=2.0)
train_dataloader = dict(
    dataset=dict(
        type='mmdiffrep.ImageFolder',
        size=64,
        sources=[
            dict(path='data/tiny_imagenet_20k.zip', short_side=(64, 80)),
            dict(path='data/camvid/images/train', short_side=(150, 220), repeat=28),
        ],
    )
)
max_iters = 4500
train_cfg = dict(max_iters=max_iters)
param_scheduler = [dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100)]
