# ViT-S with patches of 4×4, from scratch on the same labels, with crops.
_base_ = ['r18_linear_30e_cifar10-32x32.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmdiffrep.TimmBackbone',
        model='vit_small_patch16_224',
        model_args=dict(img_size=32, patch_size=4),
    )
)
