# Second stage of the shipped mmdiffrep/toy-unet: goes on with crops of 128×128 scenes and mostly low noise.
# The first: ddpm_toy-unet_2000i_toyscenes-64x64.py. Made with network.pretrained = its folder, work_dirs/…/diffusers.
_base_ = ['../_base_/pretrain_toyscenes-64x64.py']
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(pretrained='mmdiffrep/toy-unet'),
    timestep_power=2.0,
)
max_iters = 3500
train_cfg = dict(max_iters=max_iters)
optim_wrapper = dict(optimizer=dict(lr=6e-4))
param_scheduler = [dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100)]
