# Text to image in the latents of an autoencoder, in Stable Diffusion's layout. Make the autoencoder first
# (vae_toy-vae_6k_toyscenes-64x64.py), and the text encoder of the shipped CLIP: python tools/convert_clip.py mmdiffrep/toy-clip work_dirs/toy-clip-text
# Data: python tools/make_toyscenes.py data/toyscenes-pretrain --train 16000 --val 500 --val-heldout 0 --pairs 0 --seed 1
_base_ = ['../_base_/networks/toy-sd.py', '../_base_/pretrain_small.py']
data_root = 'data/toyscenes-pretrain'
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=_base_.network,
    schedule=dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012, prediction_type='v_prediction'),
    autoencoder='work_dirs/vae_toy-vae_6k_toyscenes-64x64/diffusers',
    text_encoder='work_dirs/toy-clip-text',
    drop_condition=0.1,
)
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type='mmdiffrep.ImageCaptions',
        sources=dict(
            ann_file=f'{data_root}/annotations/captions_train.json',
            img_dir=f'{data_root}/images/train',
            regions=f'{data_root}/annotations/instances_train.json',
        ),
        size=64,
        region_templates=('a {name}', 'a {pattern} {name}'),
        min_side=20,
    ),
)
max_iters = 12000
train_cfg = dict(max_iters=max_iters)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=False, begin=100, end=max_iters),
]
