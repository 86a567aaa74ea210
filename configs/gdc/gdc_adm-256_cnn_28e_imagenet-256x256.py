_base_ = ['gdc_adm-256_linear_28e_imagenet-256x256.py']
model = dict(
    head=dict(_delete_=True, type='mmdiffrep.ConvHead', num_classes=_base_.num_classes, channels=[1024, 1024])
)
