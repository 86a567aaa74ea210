_base_ = ['../ddae/ddae_cifar-unet_linear_15e_cifar10-32x32.py']
model = dict(
    head=dict(
        _delete_=True, type='mmdiffrep.ConvHead', num_classes=_base_.num_classes, channels=[128, 128]
    )
)
