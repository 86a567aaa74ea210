_base_ = ['../ddae/ddae_cifar-unet_linear_15e_cifar10-32x32.py']
model = dict(
    head=dict(
        _delete_=True,
        type='mmdiffrep.AttentionFusion',
        num_classes=_base_.num_classes,
        image_size=_base_.image_size,
        dim=128,
        heads=4,
        pool=8,
    )
)
