"""What mmengine takes as a checkpoint: short names, .safetensors files and folders; and exporting a training's weights."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmdiffrep  # noqa: F401
from mmdiffrep import compat
from mmdiffrep.apis.export import export_weights
from mmdiffrep.diffusion import loading
from mmdiffrep.utils.checkpoints import existing_checkpoint, trained_models, weight_file

ROOT = Path(__file__).resolve().parents[1]


@MODELS.register_module(force=True)
class CheckpointsTestModel(BaseModel):
    """A trained layer, a counter, and the digest of something frozen."""

    def __init__(self, width=3, frozen=7, init_cfg=None):
        super().__init__(init_cfg=init_cfg)
        self.linear = torch.nn.Linear(2, width)
        self.register_buffer('steps', torch.tensor(70_000))
        self.register_buffer('frozen_digest', torch.full((32,), frozen, dtype=torch.uint8))

    def forward(self, x, mode='tensor'):
        return self.linear(x)

    def _load_from_state_dict(self, state, prefix, *args):
        if not torch.equal(state[prefix + 'frozen_digest'], self.frozen_digest):
            raise ValueError('trained on other frozen weights')
        super()._load_from_state_dict(state, prefix, *args)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CheckpointsTestModel()


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'configs' / 'small_line.py'
    path.parent.mkdir()
    path.write_text(
        "default_scope = 'mmengine'\n"
        "model = dict(type='CheckpointsTestModel', init_cfg=dict(type='Pretrained', checkpoint='elsewhere.pth'))\n"
        "train_dataloader = dict(dataset=dict(data_root='data/mine'))\n"
    )
    return path


@pytest.fixture
def run(model, tmp_path):
    """A folder as a training leaves it."""
    folder = tmp_path / 'run'
    folder.mkdir()
    meta = dict(
        iter=12, seed=3, dataset_meta=dict(classes=('a', 'b'), palette=[[1, 2, 3], [4, 5, 6]])
    )
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / 'iter_12.pth')
    (folder / 'last_checkpoint').write_text('/elsewhere/iter_12.pth')
    return folder


@pytest.fixture
def shipped(tmp_path, monkeypatch, model):
    """Short names lead here: a trained model, a CLIP's folder, a denoiser's."""
    root = tmp_path / 'shipped'
    monkeypatch.setattr(loading, 'SHIPPED', root)
    for name, metadata in (('small-line', dict(config='small_line')), ('a-clip', None)):
        (root / name).mkdir(parents=True)
        save_file(model.state_dict(), root / name / f'{name}.safetensors', metadata)
    (root / 'a-unet' / 'unet').mkdir(parents=True)
    return root


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(a, b):
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(x, y), key


# ---- wherever mmengine takes a checkpoint --------------------------------------------------------------------------


def test_every_form_is_loaded(model, run, shipped):
    file = shipped / 'small-line' / 'small-line.safetensors'
    for given in (
        'mmdiffrep/small-line',
        str(file),
        str(file.parent),
        str(run),
        str(run / 'iter_12.pth'),
    ):
        other = CheckpointsTestModel()
        found = load_checkpoint(other, given, map_location='cpu')
        same(model, other)
        assert isinstance(found['meta'], dict)  # mmseg's inferencer looks into it


def test_init_cfg_and_load_from(model, shipped, tmp_path):
    pretrained = dict(type='Pretrained', checkpoint='mmdiffrep/small-line')
    other = CheckpointsTestModel(init_cfg=pretrained)
    other.init_weights()
    same(model, other)
    config = tmp_path / 'line.py'
    config.write_text("default_scope = 'mmengine'\ntrain_dataloader = dict()\n")
    train = load_tool('train')

    def prepare(*argv):
        return train.prepare(train.make_parser().parse_args([str(config), *argv]))

    cfg = prepare('--cfg-options', 'load_from=mmdiffrep/small-line')
    assert cfg.load_from == str(shipped / 'small-line' / 'small-line.safetensors') and not cfg.get(
        'resume'
    )
    with pytest.raises(ValueError, match='load_from=mmdiffrep/small-line'):
        prepare('--resume', 'mmdiffrep/small-line')
    with pytest.raises(FileNotFoundError, match='Nearest: mmdiffrep/small-line'):
        prepare('--cfg-options', 'load_from=mmdiffrep/smal-line')
    test = load_tool('test')
    config.write_text("default_scope = 'mmengine'\ntest_dataloader = dict()\n")
    cfg = test.prepare(test.make_parser().parse_args([str(config), 'mmdiffrep/small-line']))
    assert cfg.load_from.endswith('small-line.safetensors')


def test_mistakes_are_named(shipped, tmp_path):
    assert trained_models() == ['mmdiffrep/small-line']
    with pytest.raises(
        FileNotFoundError,
        match=r'no such model ships.*Nearest: mmdiffrep/small-line\. Trained models',
    ):
        CheckpointLoader.load_checkpoint('mmdiffrep/small-lin')
    for name in ('a-clip', 'a-unet'):
        with pytest.raises(ValueError, match='no trained part of a config.*small-line'):
            weight_file(f'mmdiffrep/{name}')
    (tmp_path / 'broken.safetensors').write_bytes(b'no tensors')
    with pytest.raises(ValueError, match='Is the download complete'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'broken.safetensors'))
    with pytest.raises(ValueError, match='needed: one file of'):
        CheckpointLoader.load_checkpoint(str(shipped / 'a-unet'))
    with pytest.raises(FileNotFoundError):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'no.pth'))
    assert existing_checkpoint('https://host/file.pth') == 'https://host/file.pth'


def test_addresses_go_where_they_went():
    find = CheckpointLoader._get_checkpoint_loader
    for path, name in {
        'https://host/a.pth': 'load_from_http',
        'torchvision://resnet18': 'load_from_torchvision',
        's3://bucket/a.safetensors': 'load_from_ceph',
        'https://host/a.safetensors': 'load_from_mmdiffrep',
        '/mmdiffrep/a.pth': 'load_from_local',
    }.items():
        assert find(path).__name__ == name, path


def test_whichever_is_imported_first():
    for order in (('mmdiffrep', 'mmengine.runner'), ('mmengine.runner', 'mmdiffrep')):
        code = ''.join(f'import {name}\n' for name in order)
        code += 'from mmengine.runner import CheckpointLoader as c\nprint("mmdiffrep/" in c._schemes, len(c._schemes))'
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        assert done.stdout.startswith('True'), done.stderr
    count = len(CheckpointLoader._schemes)
    compat.install()
    assert len(CheckpointLoader._schemes) == count


# ---- exporting -----------------------------------------------------------------------------------------------------


def test_an_export_is_the_trained_part_and_a_card(model, run, config, tmp_path):
    folder = export_weights(
        run, config, tmp_path / 'out', description='It tells lines.', notes=['PQ 1.0']
    )
    assert sorted(p.name for p in folder.iterdir()) == ['README.md', 'out.safetensors']
    # readable by whom the user's umask lets
    assert folder.joinpath('out.safetensors').stat().st_mode == folder.joinpath('README.md').stat().st_mode
    stored = load_file(folder / 'out.safetensors')
    assert stored['linear.weight'].dtype == torch.float16
    assert stored['steps'].dtype == torch.int64 and stored['frozen_digest'].dtype == torch.uint8
    other = CheckpointsTestModel()
    found = load_checkpoint(other, str(folder), map_location='cpu')
    assert other.linear.weight.dtype == torch.float32
    assert found['meta']['dataset_meta'] == dict(classes=['a', 'b'], palette=[[1, 2, 3], [4, 5, 6]])
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=2**-11, atol=1e-7)
    with safe_open(folder / 'out.safetensors', 'pt') as file:
        metadata = file.metadata()
    assert (metadata['config'], metadata['iterations'], metadata['seed']) == (
        'small_line',
        '12',
        '3',
    )
    assert json.loads(metadata['frozen']) == dict(frozen_digest='07' * 32)
    card = (folder / 'README.md').read_text()
    for line in ('license: apache-2.0', '# out', 'It tells lines.', 'configs/small_line.py', '9 parameters, fp16',
                 'data/mine', 'iterations: 12; seed: 3', 'tools/train.py configs/small_line.py', '- PQ 1.0'):  # fmt: skip
        assert line in card, line


def test_an_export_keeps_every_bit_in_fp32_and_replaces_an_earlier_one(
    model, run, config, tmp_path
):
    for _ in range(2):
        export_weights(run / 'iter_12.pth', config, tmp_path / 'out', name='small', dtype='fp32')
    other = CheckpointsTestModel()
    load_checkpoint(other, str(tmp_path / 'out' / 'small.safetensors'))
    same(model, other)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith('.out')]


def test_what_cannot_be_exported(model, run, config, tmp_path):
    def export(changed=None, **options):
        path = run
        if changed is not None:
            path = tmp_path / 'changed.pth'
            torch.save(dict(state_dict=changed.state_dict(), meta={}), path)
        return export_weights(path, config, **{'folder': tmp_path / 'out', **options})

    with pytest.raises(ValueError, match='not of this config: 2 tensors have another shape'):
        export(CheckpointsTestModel(width=4))
    with pytest.raises(ValueError, match='other frozen weights'):
        export(CheckpointsTestModel(frozen=8))
    model.linear.bias.data[0] = 1e6
    with pytest.raises(
        ValueError, match=r'linear.bias has numbers up to 1e\+06, too large for fp16: take fp32'
    ):
        export(model)
    export(model, dtype='fp32', folder=tmp_path / 'large')
    with pytest.raises(ValueError, match="allowed: .*'fp16', 'fp32'"):
        export(dtype='fp8')
    assert not (tmp_path / 'out').exists()
    with pytest.raises(ValueError, match='no earlier export'):
        export(folder=config.parent)
    with pytest.raises(ValueError, match='is of no file'):
        export_weights(run, Config(dict(model=dict(type='CheckpointsTestModel'))), tmp_path / 'out')


def test_the_tool(run, config, tmp_path, capsys):
    tool = load_tool('export_weights')
    out = str(tmp_path / 'mine')
    options = ['--config', str(config), '--out', out, '--license', 'mit', '--data', 'lines']
    assert tool.main([str(run), *options, '--note', 'one', '--note', 'two']) == 0
    assert f'{out}/mine.safetensors' in capsys.readouterr().out
    card = Path(out, 'README.md').read_text()
    assert 'license: mit' in card and '- data: lines' in card and '- one\n- two\n' in card
    assert tool.main([str(tmp_path / 'no'), *options]) == 2
    assert capsys.readouterr().err.startswith('error: checkpoint')
