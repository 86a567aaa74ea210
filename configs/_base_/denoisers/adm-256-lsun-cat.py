# guided-diffusion's LSUN cats at 256×256, of adm-256's architecture.
# Download: https://openaipublic.blob.core.windows.net/diffusion/jul-2021/lsun_cat.pt
_base_ = ['adm-256-ddpm-seg.py']
backbone = dict(denoiser=dict(pretrained='checkpoints/lsun_cat.pt'))
