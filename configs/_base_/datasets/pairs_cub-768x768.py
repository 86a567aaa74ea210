# CUB-200-2011, unpacked, of https://www.vision.caltech.edu/datasets/cub_200_2011: 1000 drawn pairs of one class each.
_base_ = ['pairs-128x128.py']
data_root = 'data/CUB_200_2011'
test_dataloader = dict(
    dataset=dict(type='mmdiffrep.CUBPairs', data_root=data_root, split='test', count=1000, seed=0)
)
