# From three blocks of the way up into the blocks of the same size of the way down. The network is run twice for each batch: nothing is kept.
_base_ = ['../gdc/gdc_cifar-unet_attention_15e_cifar10-32x32.py']
backbone = _base_.backbone
backbone.update(
    type='mmdiffrep.FeedbackBackbone',
    feedback={
        'up_blocks.0.resnets.1': 'down_blocks.3.resnets.0',
        'up_blocks.1.attentions.1': 'down_blocks.2.attentions.0',
        'up_blocks.2.resnets.1': 'down_blocks.1.resnets.0',
    },
)
model = dict(backbone=dict(_delete_=True, **backbone))
