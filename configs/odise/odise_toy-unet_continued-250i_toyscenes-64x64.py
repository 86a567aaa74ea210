# Goes on from the weights that ship, at a tenth of the rate: bash tools/demo.sh does so with 200 scenes.
_base_ = ['odise_toy-unet_1200i_toyscenes-64x64.py']
load_from = 'mmdiffrep/toy-odise'
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=20),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=20, end=250),
]
train_cfg = dict(max_iters=250, val_interval=250)
