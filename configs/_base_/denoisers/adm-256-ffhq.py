# DDPM-Seg's network of faces (FFHQ) at 256×256, of adm-256's architecture.
# Download: https://storage.yandexcloud.net/yandex-research/ddpm-segmentation/models/ddpm_checkpoints/ffhq.pt
_base_ = ['adm-256-ddpm-seg.py']
backbone = dict(denoiser=dict(pretrained='checkpoints/ffhq.pt'))
