"""The command lines of tools/train.py and tools/test.py: what they do to a config, and what they say to mistakes."""

import importlib.util
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS

from mmdiffrep import compat
from mmdiffrep.utils import cli

ROOT = Path(__file__).resolve().parents[1]


def load_tool(name):
    spec = importlib.util.spec_from_file_location(f'tools_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, test = load_tool('train'), load_tool('test')


@MODELS.register_module(force=True)
class ToolsTestModel(BaseModel):
    """Learns y = 2x; noise on its input makes every random number count."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)

    def forward(self, x, mode='tensor'):
        x = torch.as_tensor(x).float()[:, None]
        y = self.linear(x)
        if mode == 'loss':
            return dict(loss=((y - 2 * x + 0.1 * torch.randn_like(x)) ** 2).mean())
        return [dict(y=float(value)) for value in y]


@DATASETS.register_module(force=True)
class ToolsTestData(BaseDataset):
    def load_data_list(self):
        return [dict(x=float(i)) for i in range(8)]

    def prepare_data(self, idx):
        return dict(x=self.get_data_info(idx)['x'])


@METRICS.register_module(force=True)
class ToolsTestMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [sample['y'] for sample in data_samples]

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results))


CONFIG = """
default_scope = 'mmengine'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
model = dict(type='ToolsTestModel')
data = dict(type='ToolsTestData')
train_dataloader = dict(dataset=data, batch_size=2, sampler=dict(type='InfiniteSampler', shuffle=True))
train_cfg = dict(by_epoch=False, max_iters=4)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
test_dataloader = dict(dataset=data, batch_size=4, sampler=dict(type='DefaultSampler', shuffle=False))
test_cfg = dict()
test_evaluator = dict(type='ToolsTestMetric', prefix='tools')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
custom_hooks = [dict(type='mmdiffrep.RandomStateHook')]
log_level = 'ERROR'
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config on mmengine alone, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'toy_line.py'
    path.write_text(CONFIG)
    return str(path)


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']['linear.weight']


def error_of(call, argv, capsys):
    """What a tool says before it ends with status 2."""
    with pytest.raises(SystemExit) as ended:
        call(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


# --- running -----------------------------------------------------------------------------------


def test_train_resume_and_test(config, tmp_path, capsys):
    train.main([config, '--seed', '3'])
    whole = weights('work_dirs/toy_line/iter_4.pth')  # the work dir's default name
    train.main(
        [config, '--work-dir', 'again', '--seed', '3', '--resume', 'work_dirs/toy_line/iter_2.pth']
    )
    assert torch.equal(weights('again/iter_4.pth'), whole)  # exact continuation
    train.main([config, '--work-dir', 'other', '--seed', '4'])
    assert not torch.equal(weights('other/iter_4.pth'), whole)

    test.main([config, 'again/iter_4.pth', '--work-dir', 'test', '--out', 'predictions.pkl'])
    with open('predictions.pkl', 'rb') as file:  # written two lines above
        predictions = pickle.load(file)
    assert len(predictions) == 8
    step = predictions[1]['y'] - predictions[0]['y']
    assert step == pytest.approx(float(whole), abs=1e-6)


def test_resume_auto_finds_the_last_checkpoint(config):
    train.main([config, '--seed', '3', '--cfg-options', 'train_cfg.max_iters=2'])
    train.main([config, '--seed', '3', '--resume'])
    auto = weights('work_dirs/toy_line/iter_4.pth')
    train.main([config, '--seed', '3', '--work-dir', 'whole'])
    assert torch.equal(auto, weights('whole/iter_4.pth'))


# --- what the arguments do ---------------------------------------------------------------------


def prepare(tool, *argv):
    return tool.prepare(tool.make_parser().parse_args([str(a) for a in argv]))


def test_arguments_reach_the_config(config):
    options = ['--cfg-options', 'train_cfg.max_iters=7', 'optim_wrapper.optimizer.lr=0.5']
    cfg = prepare(train, config, '--deterministic', '--resume', *options)
    assert (cfg.train_cfg.max_iters, cfg.optim_wrapper.optimizer.lr) == (7, 0.5)
    assert cfg.randomness == dict(deterministic=True)
    assert cfg.resume is True and cfg.load_from is None
    assert cfg.work_dir == 'work_dirs/toy_line'


@pytest.mark.parametrize(
    'argument, dtype, scale', [([], 'float16', 'dynamic'), (['bf16'], 'bfloat16', 1.0)]
)
def test_amp(config, monkeypatch, argument, dtype, scale):
    monkeypatch.setattr(compat, 'has_accelerator', lambda: True)
    wrapper = prepare(train, config, '--amp', *argument).optim_wrapper
    assert (wrapper.type, wrapper.dtype, wrapper.loss_scale) == (
        'mmengine.AmpOptimWrapper',
        dtype,
        scale,
    )


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_show_dir(config, scope):
    cfg = prepare(test, config, '--show-dir', 'shown', '--cfg-options', f'default_scope={scope}')
    hook = cfg.default_hooks.visualization
    assert hook.type.startswith(f'{scope}.') and hook.draw is True
    assert cfg.visualizer.save_dir == str(Path('shown').absolute())
    assert cfg.default_hooks.checkpoint.type == 'CheckpointHook'  # the others stay
    assert ('test_out_dir' in hook) == (scope == 'mmdet')


# --- mistakes ----------------------------------------------------------------------------------


def test_unknown_config_names_the_nearest(config, capsys):
    known = next(path for path in cli.known_configs() if path.parent.name == 'pretrain')
    wrong = known.name.replace('_', '-', 1)
    message = error_of(train.main, [wrong], capsys)
    assert f'error: config {wrong!r} is not a file. Nearest: {known}' in message
    assert 'Traceback' not in message


def test_known_configs_are_found():
    assert all(path.is_file() for path in cli.known_configs())
    assert not [path for path in cli.known_configs() if '_base_' in path.parts]


@pytest.mark.parametrize('tool, place', [('train', '--resume'), ('test', None)])
def test_missing_checkpoint_names_those_beside_it(config, capsys, tool, place):
    Path('run').mkdir()
    Path('run', 'iter_2.pth').touch()
    argv = [config, *([place] if place else []), 'run/iter_3.pth']
    message = error_of({'train': train, 'test': test}[tool].main, argv, capsys)
    assert "error: checkpoint 'run/iter_3.pth' is not a file. There are: run/iter_2.pth" in message
    argv[-1] = 'nowhere/iter_3.pth'
    message = error_of({'train': train, 'test': test}[tool].main, argv, capsys)
    assert 'There is no .pth or .safetensors file in nowhere' in message


def test_amp_without_an_accelerator(config, capsys, monkeypatch):
    monkeypatch.setattr(compat, 'has_accelerator', lambda: False)
    message = error_of(train.main, [config, '--amp'], capsys)
    assert (
        'error: --amp fp16 needs an accelerator, and torch finds none here. Leave --amp out'
        in message
    )


def test_fsdp(config, capsys):
    assert 'error: --fsdp splits a training over processes: start it by tools/dist_train.sh' in error_of(train.main, [config, '--fsdp'], capsys)
    cfg = prepare(train, config, '--fsdp', '--launcher', 'pytorch')
    assert cfg.runner_type == 'FlexibleRunner' and cfg.strategy.type == 'FSDPStrategy' and cfg.strategy.state_dict_cfg == 'full'
    assert cfg.custom_hooks[-1].type == 'mmdiffrep.ShardedClipHook'


def test_what_belongs_to_a_cache(config, capsys):
    for argument in ('--views', '--cache-limit'):
        assert 'error: --views and --cache-limit are for kept features: give --cache FOLDER, too' in error_of(train.main, [config, argument, '3'], capsys)


def test_amp_with_another_wrapper(config, monkeypatch):
    monkeypatch.setattr(compat, 'has_accelerator', lambda: True)
    options = ['--cfg-options', 'optim_wrapper.type=ApexOptimWrapper']
    with pytest.raises(ValueError, match='type OptimWrapper, but the config has ApexOptimWrapper'):
        prepare(train, config, '--amp', *options)


def test_nothing_to_train_or_evaluate(tmp_path, capsys):
    path = tmp_path / 'empty.py'
    path.write_text('model = dict()')
    assert 'has no train_dataloader: there is nothing to train' in error_of(
        train.main, [str(path)], capsys
    )
    assert 'has no test_dataloader: there is nothing to evaluate' in error_of(
        test.main, [str(path)], capsys
    )


def test_wrong_out_and_show_dir(config, capsys):
    message = error_of(test.main, [config, '--out', 'predictions.json'], capsys)
    assert "--out 'predictions.json' must end in .pkl" in message
    message = error_of(test.main, [config, '--show-dir', 'shown'], capsys)
    assert "default_scope ['mmdet', 'mmseg'], not 'mmengine'. Give the config a" in message


def test_broken_environment_stops_a_tool(config, capsys, monkeypatch):
    monkeypatch.setattr(compat, 'environment_errors', lambda: ['torchvision is for another torch'])
    message = error_of(train.main, [config], capsys)
    assert 'error: this environment cannot work:\n- torchvision is for another torch' in message


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train'])
def test_launchers_explain_themselves(script):
    done = subprocess.run(
        ['bash', str(ROOT / 'tools' / f'{script}.sh')], capture_output=True, text=True
    )
    assert done.returncode == 2 and f'tools/{script}.sh' in done.stderr


def test_type_name():
    assert cli.type_name(dict(type='mmseg.IoUMetric')) == 'IoUMetric'
    assert cli.type_name(Config(dict(a=dict(type='IoUMetric'))).a) == 'IoUMetric'
