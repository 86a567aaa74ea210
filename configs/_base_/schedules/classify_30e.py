# The same for 30 epochs.
_base_ = ['classify_15e.py']
train_cfg = dict(max_epochs=30)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=30, convert_to_iter_based=True)]
