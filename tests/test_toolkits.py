"""Configs as mmseg and mmdet ship them, with only the backbone, in_channels and one import line changed, train and predict."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.datasets.toyscenes import write_toyscenes

ROOT = Path(__file__).parents[1]
UNET = dict(
    sample_size=32, block_out_channels=(8, 16, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D',) * 3,
)  # fmt: skip
# what a user changes: these lines, and in_channels
BACKBONE = f"""
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
backbone = dict(
    _delete_=True, type='mmdiffrep.DiffusionBackbone',
    denoiser=dict(type='mmdiffrep.PixelUNet', config={UNET!r}),
    taps=['up_blocks.0.resnets.1', 'up_blocks.1.resnets.1', 'up_blocks.2.resnets.1'],
    adapter=dict(type='mmdiffrep.StridePyramid', out_channels=256, width=16),
)
"""


def stock(package: str, config: str) -> Path:
    return Path(find_spec(package).origin).parent / '.mim' / 'configs' / config


@pytest.fixture(scope='module')
def toyscenes(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('data') / 'toyscenes'
    return write_toyscenes(out, dict(train=6, val=2), size=(64, 64))


def unique(config, name: str) -> None:
    """mmengine keeps visualisers by name for the life of a process."""
    config.experiment_name = f'stock-{name}-{os.getpid()}'
    config.visualizer.name = config.experiment_name


def seg_data(root: Path) -> str:
    """Her own images: what a user with other data than ADE20K changes besides."""
    return f"""
crop_size = (64, 64)
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    _delete_=True, type='mmdiffrep.ToyScenesDataset', data_root={str(root)!r}, pipeline=pipeline,
    data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dataset)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


SEGMENTORS = {
    'fpn': ('sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py', 'neck=dict(in_channels=[256] * 4)'),
    'upernet': (
        'upernet/upernet_r50_4xb4-160k_ade20k-512x512.py',
        'decode_head=dict(in_channels=[256] * 4, channels=32), auxiliary_head=dict(in_channels=256)',
    ),
    'segformer': (
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'decode_head=dict(in_channels=[256] * 4)',
    ),
}


@pytest.mark.parametrize('name', SEGMENTORS)
def test_stock_mmseg_config_trains(name, toyscenes, tmp_path):
    from mmengine.config import Config
    from mmengine.runner import Runner

    base, channels = SEGMENTORS[name]
    path = tmp_path / f'{name}.py'
    path.write_text(
        f'_base_ = [{str(stock("mmseg", base))!r}]\n{BACKBONE}\n'
        f'model = dict(backbone=backbone, {channels}, data_preprocessor=dict(size=(64, 64)))\n{seg_data(toyscenes)}'
    )
    config = Config.fromfile(path)
    config.work_dir = str(tmp_path / 'work')
    unique(config, name)
    runner = Runner.from_cfg(config)
    before = {key: value.clone() for key, value in runner.model.state_dict().items()}
    runner.train()
    after = runner.model.state_dict()
    assert any(
        key.startswith('backbone.adapter') and not torch.equal(before[key], after[key]) for key in after
    )
    assert not any('unet' in key for key in after)
    scalars = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    assert 'mIoU' in json.loads(scalars[-1])


def test_stock_mask_rcnn_trains_and_predicts(toyscenes, tmp_path):
    from mmengine.config import Config
    from mmengine.runner import Runner

    path = tmp_path / 'mask_rcnn.py'
    annotations = str(toyscenes / 'annotations' / 'instances_train.json')
    things = [c['name'] for c in json.loads(Path(annotations).read_text())['categories']]
    path.write_text(f"""
_base_ = [{str(stock('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'))!r}]
{BACKBONE}
model = dict(backbone=backbone, neck=dict(in_channels=[256] * 4),
    roi_head=dict(bbox_head=dict(num_classes=36), mask_head=dict(num_classes=36)))
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]
data = dict(data_root='', ann_file={annotations!r}, data_prefix=dict(img={str(toyscenes / 'images' / 'train')!r}),
    metainfo=dict(classes={tuple(things)!r}))
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=train_pipeline, **data))
val_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(64, 64), keep_ratio=True), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=val_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file={annotations!r})
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
""")
    config = Config.fromfile(path)
    config.work_dir = str(tmp_path / 'work')
    unique(config, 'mask-rcnn')
    runner = Runner.from_cfg(config)
    runner.train()
    records = [
        json.loads(line)
        for file in (tmp_path / 'work').glob('*/vis_data/scalars.json')
        for line in file.read_text().splitlines()
    ]
    assert any('coco/segm_mAP' in record for record in records)


def test_unmodified_mmseg_tools_train_then_inferencer(toyscenes, tmp_path):
    """mmseg's own tools/train.py on a config of this project, then MMSegInferencer on the result."""
    train = Path(find_spec('mmseg').origin).parent / '.mim' / 'tools' / 'train.py'
    config = tmp_path / 'config.py'
    config.write_text(f"""
_base_ = [{str(ROOT / 'configs/fpn/r18_fpn_300i_toyscenes-64x64.py')!r}]
{BACKBONE}
model = dict(backbone=backbone, neck=dict(in_channels=[256] * 4))
train_dataloader = dict(dataset=dict(data_root={str(toyscenes)!r}))
val_dataloader = dict(dataset=dict(data_root={str(toyscenes)!r}))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
""")
    # as installed: the plain tool does not have this project's folder on its path
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    script = f"""
import mmdiffrep, sys
from mmseg.apis import MMSegInferencer
inferencer = MMSegInferencer({str(config)!r}, {str(tmp_path / 'work' / 'iter_2.pth')!r}, device='cpu')
result = inferencer({str(toyscenes / 'images/val/000000.png')!r})
print('SHAPE', result['predictions'].shape)
"""
    for command in (
        [str(train), str(config), '--work-dir', str(tmp_path / 'work')],
        ['-c', script],
    ):
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'SHAPE (64, 64)' in done.stdout
    assert (tmp_path / 'work' / 'iter_2.pth').stat().st_size < 40e6
