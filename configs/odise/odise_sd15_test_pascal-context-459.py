# A model trained on COCO, asked for Pascal Context's 459 classes: mIoU. Names and labels are the user's, as in odise_sd15_test_ade20k-847.py.
_base_ = ['odise_sd15_test_ade20k-847.py']
data_root = 'data/pascal-context-459'
names = f'{data_root}/classes-459.json'
model = dict(ask=names)
prefix = dict(img_path='images/val', seg_map_path='annotations/val')
val_dataloader = dict(dataset=dict(vocabulary=names, data_root=data_root, data_prefix=prefix))
test_dataloader = val_dataloader
del prefix
