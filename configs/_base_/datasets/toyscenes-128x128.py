# python tools/make_toyscenes.py data/toyscenes
_base_ = ['toyscenes-64x64.py']
data_root = 'data/toyscenes'
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
crop_size = (128, 128)
