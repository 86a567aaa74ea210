# The latent, text-conditional network: three levels of the U-Net and one of its autoencoder.
_base_ = [
    '../_base_/models/linear.py',
    '../_base_/denoisers/toy-sd.py',
    '../_base_/datasets/toyscenes-64x64.py',
    '../_base_/schedules/schedule_300i.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    adapter=dict(type='mmdiffrep.ConcatUpsample', stride=4, normalize='batch')
)
model = dict(backbone=backbone, decode_head=dict(in_channels=256, channels=256))
optim_wrapper = dict(optimizer=dict(lr=1e-2))
