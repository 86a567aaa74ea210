# The paper's recipe: batches of 64, crops of 1024×1024 read in windows of 512×512.
_base_ = [
    '../_base_/models/odise.py',
    '../_base_/models/odise-words.py',
    '../_base_/denoisers/sd15-odise.py',
    '../_base_/datasets/coco-open-panoptic-1024x1024.py',
    '../_base_/schedules/odise_92k.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.update(
    conditioner=_base_.captioner,
    windows=dict(size=512, batch=4),
    adapter=dict(type='mmdiffrep.StridePyramid', out_channels=512, resize='nearest'),
)
model = dict(backbone=backbone, vocabulary=_base_.vocabulary, text=_base_.words, clip=_base_.clip_branch)
train_dataloader = dict(batch_size=8)
