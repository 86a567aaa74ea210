# The shipped mmdiffrep/toy-clip. Data: python tools/make_toyscenes.py data/toyscenes-captions --train 6000 --val 400 --val-heldout 400 --pairs 0 --size 128
_base_ = ['../_base_/pretrain_runtime.py']

data_root = 'data/toyscenes-captions'
colours = ['red', 'orange', 'yellow', 'green', 'blue', 'purple']
shapes = ['disc', 'square', 'triangle', 'star', 'ring', 'cross']
class_names = [f'{colour} {shape}' for colour in colours for shape in shapes]
held_out = ['red star', 'orange ring', 'yellow cross', 'green disc', 'blue square', 'purple triangle']
model = dict(
    _delete_=True,
    type='mmdiffrep.ClipPretrainer',
    clip=dict(
        embed_dim=128,
        vision_cfg=dict(image_size=64, patch_size=8, width=128, layers=4, head_width=32),
        text_cfg=dict(context_length=32, width=128, layers=3, heads=4),
    ),
    vocabulary=[*class_names, 'a an and in front of , plain striped dotted checked sky water grass sand road brick wood'],
    class_names=class_names,
)
