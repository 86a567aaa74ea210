# guided-diffusion's LSUN horses at 256×256, of adm-256's architecture.
# Download: https://openaipublic.blob.core.windows.net/diffusion/jul-2021/lsun_horse.pt
_base_ = ['adm-256-ddpm-seg.py']
backbone = dict(denoiser=dict(pretrained='checkpoints/lsun_horse.pt'))
