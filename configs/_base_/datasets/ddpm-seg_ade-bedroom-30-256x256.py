# ADE-Bedroom-30: bedrooms of ADE20K with their 30 most frequent classes. 50 images to train on, 650 to test.
_base_ = ['ddpm-seg-256x256.py']
data_root = 'data/ddpm-seg/ade-bedroom-30'
class_names = [
    'wall', 'bed', 'floor', 'table', 'lamp', 'ceiling', 'painting', 'windowpane', 'pillow', 'curtain', 'cushion',
    'door', 'chair', 'cabinet', 'chest', 'mirror', 'rug', 'armchair', 'book', 'sconce', 'plant', 'wardrobe', 'clock',
    'light', 'flower', 'vase', 'fan', 'box', 'shelf', 'television',
]  # fmt: skip
num_classes = len(class_names)
train_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=50, metainfo=dict(classes=class_names))
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=650, metainfo=dict(classes=class_names))
)
test_dataloader = val_dataloader
