# Whole scenes at 32×32: small enough that two cores get to pictures. python tools/make_toyscenes.py data/toyscenes-pretrain --train 16000 --val 500 --val-heldout 0 --pairs 0 --seed 1
_base_ = ['pretrain_toyscenes-64x64.py']
train_dataloader = dict(batch_size=16, dataset=dict(size=32, short_side=(32, 32)))
val_dataloader = dict(batch_size=100, dataset=dict(size=32, short_side=(32, 32)))
