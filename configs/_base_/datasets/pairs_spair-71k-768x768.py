# SPair-71k, unpacked, of https://cvlab.postech.ac.kr/research/SPair-71k: PCK by the target's box.
_base_ = ['pairs-128x128.py']
data_root = 'data/SPair-71k'
test_dataloader = dict(
    dataset=dict(type='mmdiffrep.SPairDataset', data_root=data_root, split='test')
)
