# The shipped U-Net of photographs: the same network, read at the same places.
_base_ = ['toy-unet.py']
backbone = dict(denoiser=dict(pretrained='mmdiffrep/natural-unet'))
