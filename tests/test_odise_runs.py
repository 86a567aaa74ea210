"""The toy ODISE through mmengine's runner: trained, validated, stopped, resumed, and asked by its work folder."""

import contextlib
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.apis import OpenVocabInferencer
from mmdiffrep.datasets.toyscenes import write_toyscenes

pytest.importorskip('mmdet')
CONFIG = Path(__file__).parents[1] / 'configs/odise/odise_toy-unet_1200i_toyscenes-64x64.py'
pytestmark = [
    pytest.mark.skipif(not CONFIG.is_file(), reason='the tests do not run in a checkout'),
    pytest.mark.usefixtures('all_on_accelerator'),
]


def config(data, work_dir, iters, **changes):
    config = Config.fromfile(CONFIG)
    config.work_dir = str(work_dir)
    config.merge_from_dict(
        {
            'train_cfg.max_iters': iters,
            'train_cfg.val_interval': 100,
            'train_dataloader.batch_size': 2,
            'default_hooks.checkpoint.interval': 1,
            'default_hooks.logger.interval': 1,
            'model.train_cfg.num_points': 64,
            'custom_hooks': [dict(type='mmdiffrep.RandomStateHook')],
            **changes,
        }
    )
    for name in ('train', 'val', 'test'):
        config[f'{name}_dataloader'].dataset.data_root = str(data)
        if name != 'train':
            for key, folder in (('ann_file', 'panoptic_val_heldout.json'), ('seg_prefix', 'panoptic_val_heldout/')):
                config[f'{name}_evaluator'][key] = f'{data}/annotations/{folder}'
    config.experiment_name = f'{Path(work_dir).name}-{iters}-{len(changes)}'
    return config


def run(*args, **options):
    runner = Runner.from_cfg(config(*args, **options))
    runner.train()
    return runner


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_toyscenes(tmp_path_factory.mktemp('odise') / 'scenes', dict(train=6, val_heldout=3), (96, 96))


def test_it_trains_validates_resumes_and_answers(data, tmp_path):
    with DefaultScope.overwrite_default_scope('mmdet'):
        straight = run(data, tmp_path / 'straight', 3)
        run(data, tmp_path / 'stopped', 2)
        # what a training leaves is weights and plain values: nothing in it is run when it is read
        state = torch.load(tmp_path / 'stopped/iter_2.pth', weights_only=True)
        # and the config, which says by their names what is frozen: a digest of each is among the weights
        told = Config.fromstring(state['meta']['cfg'], '.py').model
        assert told.backbone.denoiser.pretrained == 'mmdiffrep/toy-unet'
        assert told.text.encoder.name == told.clip.name == 'mmdiffrep/toy-clip'
        assert {key for key in state['state_dict'] if key.endswith('digest')} == {'backbone.holder.frozen_digest', 'naming.encoder_digest'}
        assert {key.split('.')[0] for key in state['state_dict']} == {'backbone', 'panoptic_head', 'naming'}
        resumed = run(data, tmp_path / 'stopped', 3, resume=True)
        for (name, a), b in zip(straight.model.state_dict().items(), resumed.model.state_dict().values()):
            assert torch.equal(a, b), name
        found = resumed.val_loop.run()
    assert {'panoptic/PQ', 'panoptic/PQ_th_seen', 'panoptic/PQ_th_unseen', 'panoptic/PQ_st'} <= set(found)
    ask = OpenVocabInferencer(config(data, tmp_path / 'stopped', 3), tmp_path / 'stopped')
    result = ask(str(next((data / 'images/val_heldout').iterdir())), vocabulary='red star; sky (stuff)', progress=False)
    assert result.ids.shape == (96, 96)


def test_it_trains_in_mixed_precision(data, tmp_path, monkeypatch):
    own = OptimWrapper.optim_context

    @contextlib.contextmanager
    def context(self, model):
        with own(self, model), torch.autocast('cpu', torch.bfloat16):
            yield

    monkeypatch.setattr(OptimWrapper, 'optim_context', context)
    with DefaultScope.overwrite_default_scope('mmdet'):
        runner = run(data, tmp_path / 'mixed', 1)
    assert runner.message_hub.get_scalar('train/loss').current() > 0
    trained = [p for p in runner.model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trained)
