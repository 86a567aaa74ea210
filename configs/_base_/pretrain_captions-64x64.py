# Captioned ToyScenes and a square about each thing. python tools/make_toyscenes.py data/toyscenes-pretrain --train 16000 --val 500 --val-heldout 0 --pairs 0 --seed 1
_base_ = ['pretrain_small.py']
data_root = 'data/toyscenes-pretrain'
# the last two were in no training picture
prompts = [
    'a red disc',
    'a blue star',
    'a yellow square',
    'a purple ring',
    'a red star',
    'a green disc',
]
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
val_dataloader = dict(
    batch_size=50,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmdiffrep.ImageCaptions',
        sources=dict(
            ann_file=f'{data_root}/annotations/captions_val.json', img_dir=f'{data_root}/images/val'
        ),
        size=64,
        random=False,
    ),
)
val_evaluator = dict(type='mmdiffrep.TimestepLoss')
val_cfg = dict()
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.002, gamma=10),
    dict(type='mmdiffrep.SaveDiffusersHook', interval=500, dtype='fp16'),
    dict(
        type='mmdiffrep.SampleHook',
        interval=1000,
        count=6,
        steps=30,
        guidance_scale=3.0,
        prompts=prompts,
    ),
    dict(type='mmdiffrep.RandomStateHook'),
]
