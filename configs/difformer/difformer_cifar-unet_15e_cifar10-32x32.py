# Three blocks (4×4, 8×8, 16×16 pooled to 8×8) at three timesteps.
_base_ = ['../gdc/gdc_cifar-unet_attention_15e_cifar10-32x32.py']
backbone = _base_.backbone
backbone.update(
    taps=['up_blocks.0.resnets.1', 'up_blocks.1.attentions.1', 'up_blocks.2.resnets.1'],
    timesteps=[10, 50, 100],
)
model = dict(backbone=dict(backbone=backbone))
