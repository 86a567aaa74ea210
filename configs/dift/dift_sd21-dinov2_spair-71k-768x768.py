# Joined to DINOv2's last block, each of unit length, SD's three blocks reduced by components that the pair shares ("A Tale of Two Features",
# Zhang et al., NeurIPS 2023); both ways of the source.
_base_ = ['dift_sd21_spair-71k-768x768.py']
backbone = _base_.backbone
backbone.update(
    taps=['up_blocks.0', 'up_blocks.1', 'up_blocks.2'],
    timesteps=100,
    noise=dict(kind='fresh', draws=1),
)
model = dict(
    backbone=backbone,
    components=256,
    second=dict(
        type='mmdiffrep.TimmBackbone',
        model='vit_base_patch14_dinov2.lvd142m',
        pretrained=True,
        frozen=True,
        model_args=dict(img_size=840),
    ),
    second_size=840,
    flip=True,
)
