# Text to image in the latents of an autoencoder, in Stable Diffusion's layout: first stage of the shipped mmdiffrep/toy-sd. Make the
# autoencoder first (vae_toy-vae_3k_toyscenes-64x64.py), and the text encoder of the shipped CLIP: python tools/convert_clip.py mmdiffrep/toy-clip work_dirs/toy-clip-text
_base_ = ['../_base_/networks/toy-sd.py', '../_base_/pretrain_captions-64x64.py']
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=_base_.network,
    schedule=dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, prediction_type='v_prediction'),
    autoencoder='work_dirs/vae_toy-vae_3k_toyscenes-64x64/diffusers',
    text_encoder='work_dirs/toy-clip-text',
    drop_condition=0.1,
)
max_iters = 4500
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=6000),
]
