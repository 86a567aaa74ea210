# DDPM-Seg's with a cap: 2000 steps of 64 pixels a member.
_base_ = ['pixels_100e.py']
train_cfg = dict(max_iters=2000, val_interval=2000)
