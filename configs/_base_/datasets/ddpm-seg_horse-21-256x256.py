# Horse-21: horses of LSUN. 30 images to train on, 30 to test.
_base_ = ['ddpm-seg-256x256.py']
data_root = 'data/ddpm-seg/horse-21'
class_names = [
    'background', 'person', 'back', 'barrel', 'bridle', 'chest', 'ear', 'eye', 'forelock', 'head', 'hoof', 'leg',
    'mane', 'muzzle', 'neck', 'nostril', 'tail', 'thigh', 'saddle', 'shoulder', 'leg protection',
]  # fmt: skip
num_classes = len(class_names)
train_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=30, metainfo=dict(classes=class_names))
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=30, metainfo=dict(classes=class_names))
)
test_dataloader = val_dataloader
