# The attention head, on one block at one timestep.
_base_ = ['gdc_adm-256_linear_28e_imagenet-256x256.py']
model = dict(
    head=dict(
        _delete_=True,
        type='mmdiffrep.AttentionFusion',
        num_classes=_base_.num_classes,
        image_size=_base_.image_size,
    )
)
optim_wrapper = dict(optimizer=dict(lr=5e-2))
