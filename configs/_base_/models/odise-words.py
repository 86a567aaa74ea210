# Names as CLIP ViT-L/14 at 336 pixels has them, and the same CLIP's look at the masks, as in ODISE.
name, weights = 'ViT-L-14-336', 'openai'
words = dict(
    encoder=dict(kind='open_clip', name=name, pretrained=weights), cache_dir='work_dirs/text'
)
clip_branch = dict(
    kind='attention', name=name, pretrained=weights, templates='single', alpha=0.3, beta=0.7
)
captioner = dict(type='mmdiffrep.ImplicitCaptioner', clip=dict(name=name, pretrained=weights))
del name, weights
