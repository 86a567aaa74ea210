# The stock ConvNeXt-T, pre-trained on ImageNet-1k, from timm (pip install timm): mmseg's own configs take it from
# mmpretrain, which does not import with transformers 5. It downloads its weights when it is built.
backbone = dict(
    type='mmseg.TIMMBackbone',
    model_name='convnext_tiny.fb_in1k',
    pretrained=True,
    drop_path_rate=0.4,
)
backbone_channels = [96, 192, 384, 768]
