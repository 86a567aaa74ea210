# python tools/make_toyscenes.py data/toyscenes; pairs to train on, of other scenes:
# python tools/make_toyscenes.py data/toyscenes_pairs --train 0 --val 0 --pairs 200 --seed 1
_base_ = ['pairs_toyscenes-128x128.py']
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='pseudo_collate'),
    dataset=dict(type='mmdiffrep.KeypointPairs', data_root='data/toyscenes_pairs/pairs'),
)
val_dataloader = _base_.test_dataloader
val_evaluator = _base_.test_evaluator
