# The stock ResNet-18, from scratch.
backbone = dict(
    type='mmseg.ResNet',
    depth=18,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='BN', requires_grad=True),
    norm_eval=False,
    style='pytorch',
)
