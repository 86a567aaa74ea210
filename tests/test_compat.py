"""Workarounds for upstream releases: that they work, that they are still needed, and that they say what is wrong."""

import inspect
import os
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from mmdiffrep import compat


def run_python(code, **env):
    """Output of a new Python process (stdout and stderr); it must succeed."""
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


# --- import ------------------------------------------------------------------------------------


def test_import_is_light():
    out = run_python(
        'import time, sys, torch, mmengine, mmengine.registry\n'
        'begin = time.process_time()\n'
        'import mmdiffrep\n'
        'print(time.process_time() - begin)\n'
        'print([m for m in ("diffusers", "mmcv", "mmseg", "mmdet", "torchvision") if m in sys.modules])'
    )
    seconds, loaded = out.split('\n')[:2]
    assert float(seconds) < 0.3
    assert loaded == '[]'


# --- resuming ----------------------------------------------------------------------------------


def make_runner(work_dir, max_iters, **kwargs):
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, inputs, mode='tensor'):
            loss = (self.linear(torch.as_tensor(inputs).reshape(-1, 1).float()) ** 2).mean()
            return dict(loss=loss) if mode == 'loss' else loss

    return Runner(
        Model(),
        str(work_dir),
        train_dataloader=dict(
            dataset=[dict(inputs=float(i)) for i in range(8)],
            sampler=dict(type='InfiniteSampler', shuffle=False),
            batch_size=2,
        ),
        train_cfg=dict(by_epoch=False, max_iters=max_iters),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        randomness=dict(seed=0),
        experiment_name=f'compat_{work_dir.name}_{max_iters}',
        log_level='ERROR',
        **kwargs,
    )


def test_runner_saves_and_resumes(tmp_path):
    make_runner(tmp_path, 2).train()
    resumed = make_runner(tmp_path, 4, resume=True)
    resumed.train()
    assert resumed.iter == 4
    assert len(resumed.message_hub.log_scalars['train/loss'].data[0]) == 4


@pytest.fixture
def checkpoint(tmp_path):
    buffer = HistoryBuffer()
    for value in (1.0, 2):
        buffer.update(value)
    path = tmp_path / 'checkpoint.pth'
    numbers = [np.float32(1.5), np.int64(2), np.bool_(True), np.arange(3, dtype=np.uint32)]
    torch.save(dict(buffer=buffer, numbers=numbers), path)
    return path


def test_message_hub_loads_with_weights_only(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    assert loaded['buffer'].mean() == 1.5 and loaded['buffer'].statistics('max') == 2
    assert loaded['numbers'][0] == np.float32(1.5)
    assert loaded['numbers'][3].tolist() == [0, 1, 2]


def test_safe_globals_are_still_needed(checkpoint):
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(Exception, match='Weights only load failed'):
            torch.load(checkpoint, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(known)


class Attribute:
    """Pickles as ``getattr(owner, name)``."""

    def __init__(self, owner, name):
        self.call = getattr, (owner, name)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize('name', ['__init__', '__class__', 'update'])
def test_getattr_in_a_checkpoint_opens_no_door(tmp_path, name):
    torch.save(Attribute(HistoryBuffer, name), tmp_path / 'bad.pth')
    with pytest.raises(ValueError, match=f'asks for attribute {name!r} of .* do not load it'):
        torch.load(tmp_path / 'bad.pth', weights_only=True)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    class Bad:
        def __reduce__(self):
            return eval, ('1 + 1',)

    torch.save(Bad(), tmp_path / 'bad.pth')
    with pytest.raises(Exception, match='Weights only load failed'):
        torch.load(tmp_path / 'bad.pth', weights_only=True)


# --- DDP without an accelerator ----------------------------------------------------------------


def test_cpu_ddp_is_still_needed():
    from mmengine.dist import utils
    from mmengine.runner import Runner

    assert 'torch.cuda.set_device(local_rank)' in inspect.getsource(utils._init_dist_pytorch)
    assert "device_ids=[int(os.environ['LOCAL_RANK'])]" in inspect.getsource(Runner.wrap_model)


def test_cpu_ddp_keeps_what_the_config_says(monkeypatch):
    from mmengine.config import Config

    monkeypatch.setattr(compat, 'has_accelerator', lambda: False)
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    cfg = Config(dict(launcher='pytorch', model_wrapper_cfg=dict(broadcast_buffers=True)))
    compat.prepare_cpu_ddp(cfg)
    assert cfg.model_wrapper_cfg == dict(
        device_ids=None, broadcast_buffers=True, find_unused_parameters=False
    )
    alone = Config(dict(launcher='none'))
    compat.prepare_cpu_ddp(alone)
    assert 'model_wrapper_cfg' not in alone


# --- the environment ---------------------------------------------------------------------------


def fake_package(folder, name, version, body=''):
    (folder / name).mkdir()
    (folder / name / 'version.py').write_text(f'__version__ = {version!r}\n')
    (folder / name / '__init__.py').write_text(body)


def test_this_environment_fits_together():
    compat.check_environment()
    assert compat.environment_warnings() == []


def test_messages_of_a_broken_environment(tmp_path):
    fake_package(tmp_path, 'torchvision', '0.14.0')
    fake_package(tmp_path, 'mmcv', '2.2.0')
    fake_package(tmp_path, 'mmpretrain', '1.2.0')
    fake_package(tmp_path, 'transformers', '5.1.0')
    out = run_python(
        'import sys\n'
        "sys.modules['pkg_resources'] = None\n"
        'import mmdiffrep\n'
        'from mmdiffrep import compat\n'
        'try:\n    compat.check_environment()\n'
        "except RuntimeError as error:\n    print('RAISED', error)\n",
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
    )
    raised = out.split('RAISED')[1]
    minor = int(torch.__version__.split('.')[1])
    assert f'torchvision 0.14.0 is not made for torch {torch.__version__}' in raised
    assert 'operator torchvision::nms does not exist' in raised
    assert f"pip install 'torchvision==0.{minor + 15}.*'" in raised
    for toolkit in ('mmseg', 'mmdet'):
        assert f'{toolkit} refuses mmcv 2.2.0; it allows mmcv < 2.2.0' in raised
    assert 'mmpretrain 1.2.0 does not import with transformers 5.1.0' in raised
    assert "pip install 'setuptools<82'" in out  # a warning: most things work without
    assert (
        out.count('torchvision 0.14.0 is not made') == 2
    )  # warned of on import, raised by the check


def test_message_when_torchvision_does_not_load(tmp_path):
    import torchvision

    body = "raise RuntimeError('operator torchvision::nms does not exist')"
    fake_package(tmp_path, 'torchvision', torchvision.__version__, body)
    out = run_python(
        'from mmdiffrep import compat\n'
        'try:\n    compat.check_environment()\nexcept RuntimeError as error:\n    print(error)\n',
        PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]),
    )
    assert (
        'torchvision does not load: operator torchvision::nms does not exist. Install the one'
        in out
    )


def test_version_checks_are_still_needed():
    import mmengine.utils.package_utils

    assert 'pkg_resources' in inspect.getsource(mmengine.utils.package_utils)
    for toolkit in ('mmseg', 'mmdet'):
        assert "'2.2.0'" in compat._source(toolkit, '__init__.py')


def test_versions_are_printed(capsys):
    from mmdiffrep.__main__ import main

    assert main() == 0
    out = capsys.readouterr().out
    assert f'torch {torch.__version__}' in out and f'mmcv {mmcv.__version__}' in out
    assert 'all fits together' in out
