_base_ = ['../ddae/ddae_natural-unet_linear_15e_tiny-imagenet-64x64.py']
model = dict(
    head=dict(
        _delete_=True, type='mmdiffrep.ConvHead', num_classes=_base_.num_classes, channels=[128, 128]
    )
)
