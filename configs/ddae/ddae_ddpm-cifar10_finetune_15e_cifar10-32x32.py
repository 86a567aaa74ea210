# Fine-tuned whole.
_base_ = ['ddae_ddpm-cifar10_linear_15e_cifar10-32x32.py']
backbone = _base_.backbone
backbone.update(trainable=True)
model = dict(backbone=backbone)
optim_wrapper = dict(
    constructor='mmdiffrep.LayerDecayConstructor', paramwise_cfg=dict(decay_rate=0.75)
)
