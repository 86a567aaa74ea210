# PF-PASCAL, unpacked, and its list test_pairs_pf_pascal.csv, of https://www.di.ens.fr/willow/research/proposalflow: PCK by the image's size.
_base_ = ['pairs-128x128.py']
data_root = 'data/PF-dataset-PASCAL'
test_dataloader = dict(dataset=dict(type='mmdiffrep.PFPascalDataset', data_root=data_root))
test_evaluator = dict(by='image')
