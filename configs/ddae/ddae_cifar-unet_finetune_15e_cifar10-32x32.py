# The whole network is trained with the linear layer; rates fall by 0.75 a layer from the last to the first.
_base_ = ['ddae_cifar-unet_linear_15e_cifar10-32x32.py']
backbone = _base_.backbone
backbone.update(trainable=True, timesteps=10)
model = dict(backbone=dict(_delete_=True, **backbone))
train_dataloader = dict(
    dataset=dict(
        transforms=[
            dict(type='RandomCrop', size=_base_.image_size, padding=4),
            dict(type='RandomHorizontalFlip'),
        ]
    )
)
optim_wrapper = dict(
    constructor='mmdiffrep.LayerDecayConstructor', paramwise_cfg=dict(decay_rate=0.75)
)
