# The paper's: feedback from blocks 21 … 36 into 17 … 2, block 24 of the second look at t = 150, attention head; batch 4 × 4.
_base_ = ['../gdc/gdc_adm-256_attention_28e_imagenet-256x256.py']
backbone = _base_.backbone
backbone.update(type='mmdiffrep.FeedbackBackbone', feedback='gdc', timesteps=150, with_cp=True)
model = dict(backbone=backbone)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
