# CleanDIFT (Stracke et al., CVPR 2025): a U-Net that was tuned to give noisy looks' features of clean images; the timestep only says which. Weights:
# a folder with the U-Net in unet/, brought by the user (https://huggingface.co/CompVis/cleandift), the rest of SD 2.1 beside it.
_base_ = ['dift_sd21_spair-71k-768x768.py']
backbone = _base_.backbone
backbone.update(noise=dict(kind='none', draws=1))
backbone.denoiser.update(pretrained='checkpoints/cleandift-sd21', latent='mean')
model = dict(backbone=backbone)
