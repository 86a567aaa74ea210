# ResNet-20 (He et al. 2016, section 4.2) with ImageNet's stem, from scratch on the same labels, with crops: a network that a CPU can train.
_base_ = ['r18_linear_30e_tiny-imagenet-64x64.py', '../_base_/schedules/classify_15e.py']
model = dict(
    backbone=dict(small_images=False, model_args=dict(layers=[3, 3, 3], channels=[16, 32, 64]))
)
