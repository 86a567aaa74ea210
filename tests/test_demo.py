"""tools/demo.py: what it reads from logs and what it draws; its trainings are those of tools/train.py."""

import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch import nn

ROOT = Path(__file__).parents[1]
UNET = dict(
    sample_size=64, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools' / 'demo.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['demo'] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules['demo']


def test_its_configs_are_there(demo):
    assert demo.DIFFUSION.is_file() and demo.STOCK.is_file()


def test_the_last_miou_of_the_newest_log_is_read(demo, tmp_path):
    for stamp, values in (('20260101_000000', [90.0]), ('20260102_000000', [10.0, 20.5])):
        folder = tmp_path / stamp / 'vis_data'
        folder.mkdir(parents=True)
        lines = [{'loss': 1.0, 'step': 1}, *({'mIoU': value, 'step': 2} for value in values)]
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    assert demo.read_miou(tmp_path) == 20.5
    with pytest.raises(RuntimeError, match='was not validated'):
        demo.read_miou(tmp_path / '20260101_000000')


def test_progress_shows_losses_and_our_warnings_only(demo):
    shown = [
        '2026/01/01 00:00:00 - mmengine - INFO - Iter(train) [ 50/300]  lr: 1e-3  loss: 1.0',
        '2026/01/01 00:00:00 - mmengine - INFO - Iter(val) [13/13]    aAcc: 50.0  mIoU: 20.0',
        '/x/mmdiffrep/models/backbones/checks.py:30: UserWarning: the first batch …',
    ]
    hidden = [
        '/x/mmseg/models/builder.py:36: UserWarning: ``build_loss`` would be deprecated',
        '2026/01/01 00:00:00 - mmengine - INFO - Hooks will be executed in the following order:',
    ]
    assert [bool(demo.PROGRESS.search(line)) for line in shown + hidden] == [True] * 3 + [False] * 2


def test_the_table_counts_what_is_trained(demo, tmp_path):
    model = nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    text = demo.summary([demo.Run('small', tmp_path, 12.345, 6.7, model)])
    assert text.splitlines()[2].split() == ['small', '12.35', '12', '7']


def test_a_failed_training_shows_its_end(demo, tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho out of luck\nexit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(demo.sys, 'executable', str(python))
    with pytest.raises(RuntimeError, match='failed(.|\n)*out of luck'):
        demo.train(2, 'x', demo.STOCK, tmp_path, tmp_path / 'out', None)
    assert (tmp_path / 'out' / 'runs' / demo.STOCK.stem / 'train.log').read_text() == 'out of luck\n'


def test_feature_pictures(demo, tmp_path):
    (tmp_path / 'config.py').write_text(
        "model = dict(backbone=dict(type='mmdiffrep.DiffusionBackbone', timesteps=10, taps=['mid_block'],"
        f"denoiser=dict(type='mmdiffrep.PixelUNet', config=dict({UNET}))))"
    )
    images = list(np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    files = demo.draw_features(demo.Run('x', tmp_path, 0, 0), images, tmp_path / 'out')
    assert [path.name for path, _ in files] == ['features_taps.png', 'features_blocks.png']
    first, second = (cv2.imread(str(path)) for path, _ in files)
    assert second.shape[1] > first.shape[1]  # image + 5 blocks; image + 1 tap
