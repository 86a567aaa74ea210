# One GPU: crops of 512×512, 16 steps of 4 images to an update (the paper's 64), the denoiser in bf16. Add --amp bf16 for the rest.
_base_ = ['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py']
crop_size = (512, 512)
pad = dict(_base_.data_preprocessor.batch_augments[0], size=crop_size)
pipeline = _base_.train_pipeline
pipeline[3].update(scale=crop_size)
pipeline[4].update(crop_size=crop_size)
model = dict(data_preprocessor=dict(batch_augments=[pad]))
train_dataloader = dict(batch_size=4, dataset=dict(pipeline=pipeline))
accumulate = 16
max_iters = 92188 * accumulate
optim_wrapper = dict(accumulative_counts=accumulate)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=250 * accumulate),
    dict(
        type='MultiStepLR', by_epoch=False, begin=0, end=max_iters, gamma=0.1,
        milestones=[81955 * accumulate, 88777 * accumulate],
    ),
]  # fmt: skip
train_cfg = dict(max_iters=max_iters, val_interval=5000 * accumulate)
del pad
