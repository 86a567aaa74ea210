# Second stage of the shipped mmdiffrep/toy-sd: the rate starts anew. The first: ldm_toy-sd_4500i_toyscenes-64x64.py. Made with
# network.pretrained = its folder, work_dirs/…/diffusers.
_base_ = ['../_base_/pretrain_captions-64x64.py']
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(pretrained='mmdiffrep/toy-sd'),
    drop_condition=0.1,
)
max_iters = 6000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
