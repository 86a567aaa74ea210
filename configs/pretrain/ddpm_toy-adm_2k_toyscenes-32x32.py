# The cosine schedule, v-prediction, min-SNR weights.
_base_ = [
    '../_base_/networks/toy-adm.py',
    '../_base_/pretrain_toyscenes-32x32.py',
]
model = dict(
    type='mmdiffrep.DenoisingPretrainer',
    network=dict(_base_.network, image_size=32),
    schedule=dict(beta_schedule='squaredcos_cap_v2', prediction_type='v_prediction'),
    min_snr_gamma=5.0,
)
