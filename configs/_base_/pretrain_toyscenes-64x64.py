# Crops of 64×64 from scenes of 128×128. python tools/make_toyscenes.py data/toyscenes-pretrain --train 16000 --val 500 --val-heldout 0 --pairs 0 --seed 1
_base_ = ['pretrain_small.py']
train_dataloader = dict(
    dataset=dict(
        type='mmdiffrep.ImageFolder',
        sources=['data/toyscenes-pretrain/images/train'],
        size=64,
        short_side=(128, 128),
    )
)
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmdiffrep.ImageFolder',
        sources=['data/toyscenes-pretrain/images/val'],
        size=64,
        short_side=(128, 128),
        random=False,
    ),
)
val_evaluator = dict(type='mmdiffrep.TimestepLoss')
val_cfg = dict()
