# PF-WILLOW, unpacked, and its list test_pairs_pf.csv, of https://www.di.ens.fr/willow/research/proposalflow: PCK by the box around the target's points.
_base_ = ['pairs-128x128.py']
data_root = 'data/PF-dataset'
test_dataloader = dict(dataset=dict(type='mmdiffrep.PFWillowDataset', data_root=data_root))
