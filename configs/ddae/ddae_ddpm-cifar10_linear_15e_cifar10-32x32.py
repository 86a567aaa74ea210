# The paper's: DDPM's network of CIFAR-10 (35.7M, Apache-2.0), its 6th block of the way up, t = 10, fresh noise, crops and flips.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/denoisers/cifar-unet.py',
    '../_base_/datasets/cifar10-32x32.py',
    '../_base_/schedules/classify_15e.py',
    '../_base_/classification_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    denoiser=dict(type='mmdiffrep.PixelUNet', pretrained='google/ddpm-cifar10-32'),
    taps=['ddae:out_6'],
    timesteps=10,
    noise=dict(kind='fresh'),
)
model = dict(
    backbone=backbone, head=dict(type='mmdiffrep.PooledHead', num_classes=_base_.num_classes)
)
