# Cat-15: cats of LSUN. 30 images to train on, 20 to test.
_base_ = ['ddpm-seg-256x256.py']
data_root = 'data/ddpm-seg/cat-15'
class_names = [
    'background', 'back', 'belly', 'chest', 'leg', 'paw', 'head', 'ear', 'eye', 'mouth', 'tongue', 'nose', 'tail',
    'whiskers', 'neck',
]  # fmt: skip
num_classes = len(class_names)
train_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=30, metainfo=dict(classes=class_names))
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=20, metainfo=dict(classes=class_names))
)
test_dataloader = val_dataloader
