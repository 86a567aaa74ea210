# ResNet-20 (He et al. 2016, section 4.2) with ImageNet's stem, from scratch on the same labels, with crops: a network that a CPU can train.
_base_ = ['r18_linear_30e_tiny-imagenet-64x64.py']
model = dict(
    backbone=dict(channels_last=True, small_images=False, model_args=dict(layers=[3, 3, 3], channels=[16, 32, 64]))
)
train_cfg = dict(max_epochs=15)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=15, convert_to_iter_based=True)]
