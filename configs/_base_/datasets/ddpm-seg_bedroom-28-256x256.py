# Bedroom-28: bedrooms of LSUN, labelled by the authors of DDPM-Seg; what they called background is not labelled here. 40 images to train on, 20 to test.
_base_ = ['ddpm-seg-256x256.py']
data_root = 'data/ddpm-seg/bedroom-28'
class_names = [
    'bed', 'bed footboard', 'bed headboard', 'bed side rail', 'carpet', 'ceiling', 'chandelier or ceiling fan blade',
    'curtain', 'cushion', 'floor', 'table, nightstand or dresser', 'top of table, nightstand or dresser',
    'picture or mirror', 'pillow', 'lamp column', 'lamp shade', 'wall', 'window', 'curtain rod', 'window frame',
    'chair', 'picture or mirror frame', 'plinth', 'door or door frame', 'pouf', 'wardrobe', 'plant', 'table staff',
]  # fmt: skip
num_classes = len(class_names)
train_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=40, metainfo=dict(classes=class_names))
)
val_dataloader = dict(
    dataset=dict(data_root=data_root, num_labels=20, metainfo=dict(classes=class_names))
)
test_dataloader = val_dataloader
