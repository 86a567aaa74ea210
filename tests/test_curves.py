"""What runs logged, as curves; what a step of pre-training costs."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from mmdiffrep.utils.comparison.logs import curve
from mmdiffrep.visualization.curves import draw_curves

TOOLS = Path(__file__).parents[1] / 'tools'


@pytest.fixture
def run_folder(tmp_path):
    for time, scale in (('1', 9.0), ('2', 1.0)):  # the newest log counts
        folder = tmp_path / 'run' / time / 'vis_data'
        folder.mkdir(parents=True)
        lines = [dict(loss=scale / step, lr=0.1, iter=step, step=step) for step in (1, 2, 4)]
        lines.append({'val/mIoU': 30.5, 'step': 4})
        (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return tmp_path / 'run'


def test_a_curve_is_the_newest_logs(run_folder):
    assert curve(run_folder, 'loss') == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert curve(run_folder, 'mIoU') == [(4, 30.5)]
    with pytest.raises(ValueError, match=r"logged no 'PQ'; it has \['loss', 'lr', 'mIoU'\]"):
        curve(run_folder, 'PQ')
    with pytest.raises(FileNotFoundError, match='give the work folder'):
        curve(run_folder / 'nowhere', 'loss')


def test_curves_are_drawn_where_their_values_are():
    low, high = ([(0, value), (100, value)] for value in (1.0, 9.0))
    rows = []
    for points in (low, high):
        picture = draw_curves({'a': points, 'b': [(0, 0.0), (100, 10.0)]}, 'loss', logarithmic=False)
        blue = (np.abs(picture.astype(int) - [0, 114, 178]).sum(-1) < 30)[:, 200:600]
        rows.append(np.flatnonzero(blue.sum(1) > 300).mean())
    assert rows[1] < rows[0] - 100  # higher up
    with pytest.raises(ValueError, match='not positive everywhere'):
        draw_curves({'a': [(1, -1.0)]}, 'loss')
    with pytest.raises(ValueError, match='no curve'):
        draw_curves({'a': []}, 'loss')


@pytest.mark.skipif(not TOOLS.is_dir(), reason='the tests do not run in a checkout')
def test_the_cost_of_a_step_is_measured(tmp_path, capsys):
    config = tmp_path / 'tiny.py'
    config.write_text(
        "model = dict(type='mmdiffrep.DenoisingPretrainer', network=dict(sample_size=16, block_out_channels=(8, 16), layers_per_block=1, "
        "norm_num_groups=4, down_block_types=('DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'UpBlock2D')))\n"
        "train_dataloader = dict(batch_size=4, dataset=dict(size=16))\noptim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))\n"
    )
    tool = runpy.run_path(str(TOOLS / 'step_cost.py'))
    assert tool['main']([str(config), '--device', 'cpu', '--steps', '1', '--one']) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found['batch'] == 4 and found['speed'] > 0 and found['parameters'] > 1000
    assert found['memory'] > 2**27  # torch alone takes more
    assert tool['main']([str(config), '--batch-size', '0', '--device', 'cpu', '--steps', '0', '--one']) == 2
    assert 'at least 1' in capsys.readouterr().err
