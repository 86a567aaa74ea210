"""The toy ODISE trained by two processes, as tools/dist_train.sh starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.datasets.toyscenes import write_toyscenes

pytest.importorskip('mmdet')
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/odise/odise_toy-unet_1200i_toyscenes-64x64.py'
pytestmark = pytest.mark.skipif(not CONFIG.is_file(), reason='the tests do not run in a checkout')
# each process notes its images and losses, and a hash of its weights at the end
WATCH = """
import hashlib, json
from pathlib import Path
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

@HOOKS.register_module()
class WatchRank(Hook):
    def before_train(self, runner):
        self.found = dict(wrapped=is_model_wrapper(runner.model), images=[], losses=[], first=self.hash(runner))

    def hash(self, runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state = sorted(model.state_dict().items())
        return hashlib.sha256(b''.join(value.numpy().tobytes() for _, value in state)).hexdigest()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.found['images'] += [sample.img_path for sample in data_batch['data_samples']]
        self.found['losses'].append({name: float(value) for name, value in outputs.items()})

    def after_train(self, runner):
        self.found['last'] = self.hash(runner)
        Path(runner.work_dir, f'rank{get_rank()}.json').write_text(json.dumps(self.found))
"""


def test_two_processes_stay_the_same_model(tmp_path):
    data = write_toyscenes(tmp_path / 'scenes', dict(train=8, val_heldout=2), (64, 64))
    (tmp_path / 'watch_rank.py').write_text(WATCH)
    config = tmp_path / 'two.py'
    config.write_text(
        f"_base_ = [{str(CONFIG)!r}]\ncustom_imports = dict(imports=['watch_rank', 'mmdiffrep'], allow_failed_imports=False)\n"
        "custom_hooks = [dict(type='WatchRank'), dict(type='mmdiffrep.RandomStateHook')]\n"
        'model = dict(train_cfg=dict(num_points=64))\ntrain_cfg = dict(max_iters=2, val_interval=2)\n'
        f'train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(data_root={str(data)!r}))\n'
        f'val_dataloader = dict(batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(data_root={str(data)!r}))\n'
        f"val_evaluator = dict(ann_file='{data}/annotations/panoptic_val_heldout.json', "
        f"seg_prefix='{data}/annotations/panoptic_val_heldout/')\ntest_evaluator = val_evaluator\n"
        'default_hooks = dict(checkpoint=dict(interval=2))\n'
    )
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    env = os.environ | dict(
        PORT=port, MMDIFFREP_PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]), CUDA_VISIBLE_DEVICES=''
    )  # fmt: skip
    command = ['bash', str(ROOT / 'tools/dist_train.sh'), str(config), '2', '--work-dir', str(tmp_path / 'run'), '--seed', '1']
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    a, b = (json.loads((tmp_path / f'run/rank{rank}.json').read_text()) for rank in range(2))
    assert a['wrapped'] and b['wrapped']
    assert not set(a['images']) & set(b['images'])  # each its own part of the data
    assert a['losses'] != b['losses']
    assert torch.tensor([list(step.values()) for found in (a, b) for step in found['losses']]).isfinite().all()
    # what was learned is of both: gradients were averaged
    assert a['first'] == b['first'] and a['last'] == b['last'] != a['first']
    state = torch.load(tmp_path / 'run/iter_2.pth', weights_only=True)['state_dict']
    assert not any(key.startswith('module.') for key in state)
    assert 'PQ' in done.stdout + done.stderr  # and both validated
