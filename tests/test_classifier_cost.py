"""tools/classifier_cost.py and tools/pixel_ensemble_cost.py at sizes that take seconds."""

import re
import types
from pathlib import Path

import pytest
import torch

import mmdiffrep  # noqa: F401

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/diffeed/diffeed_cifar-unet_15e_cifar10-32x32.py'
pytestmark = pytest.mark.skipif(not CONFIG.is_file(), reason='the tests do not run in a checkout')


def load(name):
    module = types.ModuleType(name)
    module.__file__ = str(ROOT / f'tools/{name}.py')
    exec(compile(Path(module.__file__).read_text(), module.__file__, 'exec'), module.__dict__)
    return module


def test_a_step_with_and_without_checkpointing(capsys):
    tool = load('classifier_cost')
    assert tool.main([str(CONFIG), '--batch-size', '16']) == 0
    text = capsys.readouterr().out
    assert 'feedback up_blocks.1.attentions.1 -> down_blocks.2.attentions.0: 96 -> 96 channels' in text
    assert 'attention over 64 tokens and a class token, 1 timestep(s), linear layer 128 -> 10' in text
    memory = [float(v) for v in re.findall(r'^(?:all|checkpointing).*?(\d+\.\d+) +\d', text, re.MULTILINE)]
    assert len(memory) == 2 and 0 < memory[1] <= memory[0]  # in hundredths of a GiB
    (apart,) = re.findall(r'largest difference between the two (\S+)', text)
    assert float(apart) < 1e-6
    assert 'gradients on the frozen network: 0' in text
    assert tool.main([str(CONFIG), '--batch-size', '0']) == 2
    assert 'allowed: at least 1' in capsys.readouterr().err


def test_an_ensembles_step_is_timed_and_looks_are_counted(capsys):
    tool = load('pixel_ensemble_cost')
    assert tool.main(['training', '--channels', '12', '--members', '3', '--pixels', '8', '--classes', '4', '--steps', '5']) == 0
    assert re.search(r'^12 +\d+\.\d +\d+\.\d \(\d+\.\d×\)', capsys.readouterr().out, re.MULTILINE)
    model = types.SimpleNamespace(extract_feat=lambda x: (2 * x,))
    seconds = tool.look_at(model, 2)
    found = [model.extract_feat(torch.tensor(float(i)))[0].item() for i in range(4)]
    assert found == [0, 2, 2, 2] and len(seconds) == 2
