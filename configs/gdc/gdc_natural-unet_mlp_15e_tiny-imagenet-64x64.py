_base_ = ['../ddae/ddae_natural-unet_linear_15e_tiny-imagenet-64x64.py']
model = dict(head=dict(pool=2, hidden=[256, 128], dropout=0.2))
