_base_ = ['gdc_adm-256_linear_28e_imagenet-256x256.py']
model = dict(head=dict(hidden=[2048, 2048]))
