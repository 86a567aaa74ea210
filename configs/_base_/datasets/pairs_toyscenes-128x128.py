# python tools/make_toyscenes.py data/toyscenes
_base_ = ['pairs-128x128.py']
data_root = 'data/toyscenes/pairs'
test_dataloader = dict(dataset=dict(data_root=data_root))
