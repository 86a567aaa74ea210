_base_ = [
    '../_base_/denoisers/sd21-dift.py',
    '../_base_/datasets/davis-480p.py',
    '../_base_/correspondence_runtime.py',
]
backbone = _base_.backbone
backbone.update(taps=['up_blocks.2'], timesteps=51)
model = dict(
    type='mmdiffrep.LabelPropagator',
    backbone=backbone,
    frames=28,
    radius=15,
    topk=15,
    temperature=0.2,
)
