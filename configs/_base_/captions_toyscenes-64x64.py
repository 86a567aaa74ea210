# Captioned scenes and squares about their things; zero-shot classification of squares. Data:
# python tools/make_toyscenes.py data/toyscenes-pretrain --train 16000 --val 500 --val-heldout 0 --pairs 0 --seed 1
# python tools/make_toyscenes.py data/toyscenes-captions --train 6000 --val 400 --val-heldout 400 --pairs 0
_base_ = ['pretrain_runtime.py']
data_root = 'data/toyscenes-captions'
train_root = 'data/toyscenes-pretrain'
_colours = ['red', 'orange', 'yellow', 'green', 'blue', 'purple']
_shapes = ['disc', 'square', 'triangle', 'star', 'ring', 'cross']
class_names = [f'{colour} {shape}' for colour in _colours for shape in _shapes]
vocabulary = [
    *class_names,
    'a an and in front of , plain striped dotted checked sky water grass sand road brick wood',
]
held_out = [
    'red star',
    'orange ring',
    'yellow cross',
    'green disc',
    'blue square',
    'purple triangle',
]
train_dataloader = dict(
    batch_size=64,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='mmdiffrep.ImageCaptions',
        size=64,
        sources=dict(
            ann_file=f'{train_root}/annotations/captions_train.json',
            img_dir=f'{train_root}/images/train',
            regions=f'{train_root}/annotations/instances_train.json',
        ),
        region_templates=['{name}', '{name}', '{name}', '{pattern} {name}'],
        cache=True,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='mmdiffrep.InstanceCrops',
        size=64,
        min_side=12,
        class_names=class_names,
        sources=[
            dict(
                ann_file=f'{data_root}/annotations/instances_{split}.json',
                img_dir=f'{data_root}/images/{split}',
            )
            for split in ('val', 'val_heldout')
        ],
    ),
)
val_evaluator = dict(
    type='mmdiffrep.ZeroShotAccuracy',
    class_names=class_names,
    held_out=held_out,
    parts=['colour', 'shape'],
)
val_cfg = dict()
test_dataloader = val_dataloader
test_evaluator = val_evaluator
test_cfg = dict()
