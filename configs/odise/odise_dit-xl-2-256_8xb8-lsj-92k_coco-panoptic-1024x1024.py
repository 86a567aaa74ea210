# A DiT in the place of Stable Diffusion: ImageNet's classes instead of texts, so without a captioner.
_base_ = [
    '../_base_/models/odise.py',
    '../_base_/models/odise-words.py',
    '../_base_/denoisers/dit-xl-2-256.py',
    '../_base_/datasets/coco-open-panoptic-1024x1024.py',
    '../_base_/schedules/odise_92k.py',
    '../_base_/default_runtime_det.py',
]
backbone = _base_.backbone
backbone.update(
    windows=dict(size=256, batch=16),
    adapter=dict(type='mmdiffrep.StridePyramid', out_channels=512, resize='nearest'),
)
model = dict(backbone=backbone, vocabulary=_base_.vocabulary, text=_base_.words, clip=_base_.clip_branch)
train_dataloader = dict(batch_size=8)
