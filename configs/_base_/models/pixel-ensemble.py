# DDPM-Seg's ensemble of pixel classifiers on frozen features; backbone and channels come from other files.
_base_ = ['segmentor.py']
data_preprocessor = dict(size=None, test_cfg=None)  # images are looked at as they are, one by one
model = dict(
    type='mmdiffrep.EnsembleSegmentor',
    data_preprocessor=data_preprocessor,
    decode_head=dict(type='mmdiffrep.PixelEnsemble', members=10),
)
