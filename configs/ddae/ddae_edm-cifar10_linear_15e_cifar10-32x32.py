# The paper's EDM: the 4th of 18 steps, sigma = 0.0599, 7th block of the way up. Weights: a diffusers folder as
# configs/pretrain/edm_*.py write it, with the schedule in it; the published ones are pickles, which are not opened.
_base_ = ['ddae_ddpm-cifar10_linear_15e_cifar10-32x32.py']
backbone = _base_.backbone
backbone.update(
    denoiser=dict(type='mmdiffrep.PixelUNet', pretrained='checkpoints/edm-cifar10'),
    taps=['ddae:out_7'],
    timesteps=0.0599,
)
model = dict(backbone=backbone)
