# FFHQ-34: faces of FFHQ. 20 images to train on, 20 to test.
_base_ = ['ddpm-seg-256x256.py']
data_root = 'data/ddpm-seg/ffhq-34'
class_names = [
    'background', 'head', 'cheek', 'chin', 'ear', 'ear helix', 'ear lobule', 'bottom eyelid', 'eyelashes', 'iris',
    'pupil', 'sclera', 'tear duct', 'top eyelid', 'eyebrow', 'forehead', 'frown', 'hair', 'sideburns', 'jaw',
    'moustache', 'inferior lip', 'oral commissure', 'superior lip', 'teeth', 'neck', 'nose', 'ala of nose',
    'nose bridge', 'nose tip', 'nostril', 'philtrum', 'temple', 'wrinkles',
]  # fmt: skip
num_classes = len(class_names)
train_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=20, metainfo=dict(classes=class_names))
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=20, metainfo=dict(classes=class_names))
)
test_dataloader = val_dataloader
