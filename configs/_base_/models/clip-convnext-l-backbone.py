# FC-CLIP's backbone: the frozen image tower of open_clip's ConvNeXt-L, trained on LAION-2B. It downloads its weights when it is built;
# without a network give the downloaded file as `pretrained`.
backbone = dict(
    type='mmdiffrep.ClipBackbone',
    name='convnext_large_d_320',
    pretrained='laion2b_s29b_b131k_ft_soup',
)
backbone_channels = [192, 384, 768, 1536]
