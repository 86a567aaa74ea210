# CelebA-19: faces of CelebAMask-HQ with its 19 classes. 20 images to train on, 500 to test.
_base_ = ['ddpm-seg-256x256.py']
data_root = 'data/ddpm-seg/celeba-19'
class_names = [
    'background', 'cloth', 'earring', 'eyeglasses', 'hair', 'hat', 'left brow', 'left ear', 'left eye', 'lower lip',
    'mouth', 'neck', 'necklace', 'nose', 'right brow', 'right ear', 'right eye', 'skin', 'upper lip',
]  # fmt: skip
num_classes = len(class_names)
train_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=20, metainfo=dict(classes=class_names))
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=500, metainfo=dict(classes=class_names))
)
test_dataloader = val_dataloader
