# 1000 keypoints, mutual nearest neighbours, LMedS.
_base_ = [
    '../_base_/denoisers/sd21-dift.py',
    '../_base_/datasets/hpatches-480x640.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(taps=['up_blocks.2'], timesteps=0)
model = dict(
    type='mmdiffrep.HomographyMatcher',
    backbone=backbone,
    size=768,
    metric='cosine',
    count=1000,
    method='lmeds',
)
