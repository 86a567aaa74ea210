_base_ = [
    '../_base_/denoisers/adm-256-dift.py',
    '../_base_/datasets/davis-480p.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(taps=['adm:out.7'], timesteps=51, noise=dict(kind='fresh', draws=4))
model = dict(
    type='mmdiffrep.LabelPropagator',
    backbone=backbone,
    frames=28,
    radius=15,
    topk=10,
    temperature=0.1,
)
