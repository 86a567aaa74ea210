# After FC-CLIP (Yu et al., NeurIPS 2023): one frozen convolutional CLIP gives the features, and pools them inside the masks; names in
# ViLD's 14 prompts.
_base_ = [
    '../_base_/models/odise.py',
    '../_base_/models/clip-convnext-l-backbone.py',
    '../_base_/datasets/coco-open-panoptic-1024x1024.py',
    '../_base_/schedules/odise_92k.py',
    '../_base_/default_runtime_det.py',
]
name, weights = 'convnext_large_d_320', 'laion2b_s29b_b131k_ft_soup'
model = dict(
    backbone=_base_.backbone,
    panoptic_head=dict(in_channels=_base_.backbone_channels),
    vocabulary=_base_.vocabulary,
    text=dict(
        encoder=dict(kind='open_clip', name=name, pretrained=weights),
        templates='vild',
        cache_dir='work_dirs/text',
    ),
    clip=dict(
        kind='pool', name=name, pretrained=weights, templates='vild', alpha=0.4, beta=0.8
    ),
)
train_dataloader = dict(batch_size=8)
