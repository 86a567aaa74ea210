# 1000 keypoints, mutual nearest neighbours by Euclidean distance, RANSAC at 3 pixels.
_base_ = [
    '../_base_/denoisers/adm-256-dift.py',
    '../_base_/datasets/hpatches-480x640.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(taps=['adm:out.11'], timesteps=41, noise=dict(kind='fresh', draws=4))
model = dict(
    type='mmdiffrep.HomographyMatcher',
    backbone=backbone,
    size=768,
    metric='l2',
    count=1000,
    method='ransac',
    threshold=3.0,
)
