_base_ = ['../ddae/ddae_cifar-unet_linear_15e_cifar10-32x32.py']
model = dict(head=dict(pool=2, hidden=[256, 128], dropout=0.2))
