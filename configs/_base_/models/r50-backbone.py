# The stock ResNet-50, pre-trained on ImageNet-1k.
backbone = dict(
    type='mmseg.ResNet',
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='BN', requires_grad=True),
    norm_eval=False,
    style='pytorch',
    init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
)
backbone_channels = [256, 512, 1024, 2048]
