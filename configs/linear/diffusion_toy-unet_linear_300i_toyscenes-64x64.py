# Crops of 64×64, validated on whole scenes of 128×128. Few labels: --cfg-options train_dataloader.dataset.num_labels=20 train_dataloader.dataset.subset_seed=0
_base_ = [
    '../_base_/models/linear.py',
    '../_base_/denoisers/toy-unet.py',
    '../_base_/datasets/toyscenes-64x64.py',
    '../_base_/schedules/schedule_300i.py',
    '../_base_/default_runtime.py',
]
backbone = _base_.backbone
backbone.update(
    adapter=dict(type='mmdiffrep.ConcatUpsample', stride=4, normalize='batch')
)
model = dict(backbone=backbone)
optim_wrapper = dict(optimizer=dict(lr=1e-2))
