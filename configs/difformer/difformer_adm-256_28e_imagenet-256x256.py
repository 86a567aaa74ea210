# The paper's: blocks 19, 24, 30 at t = 90, 150, 300; 576 tokens a timestep, 3072 features.
_base_ = ['../gdc/gdc_adm-256_attention_28e_imagenet-256x256.py']
backbone = _base_.backbone
backbone.update(taps=['gdc:b19', 'gdc:b24', 'gdc:b30'], timesteps=[90, 150, 300])
model = dict(backbone=backbone)
