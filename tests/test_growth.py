"""tools/growth.py: the fit, each axis in small, memory over iterations, mistakes."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mmdiffrep  # noqa: F401
from mmdiffrep.utils.bench.growth import AXES
from mmdiffrep.utils.bench.steady import KINDS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / 'tools').is_dir(), reason='the tests do not run in a checkout')


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    return importlib.import_module('growth')


def test_the_fit_finds_the_terms(growth):
    numbers = [10, 100, 1000]
    assert growth.fit(numbers, [3 + 0.5 * n for n in numbers], (0, 1)) == pytest.approx([3, 0.5])
    assert growth.fit(numbers, [2.0] * 3, (0, 1)) == pytest.approx([2, 0], abs=1e-9)
    a, b = growth.fit(numbers, [n**2 for n in numbers], (1, 2))
    assert a == pytest.approx(0, abs=1e-6) and b == pytest.approx(1)


@pytest.mark.parametrize('name, numbers', [('size', (64, 128)), ('batch', (1, 2)), ('taps', (1, 3))])
def test_network_axes_in_small(name, numbers, tiny_config):
    s = SimpleNamespace(model=tiny_config, tap='up_blocks.1', size=64, device='cpu', threads=1)
    with torch.inference_mode():
        for number in numbers:
            found = AXES[name].measure(number, s)
            assert set(found) == {'features'} and found['features'] > 0


def test_the_axis_of_names():
    found = AXES['vocabulary'].measure(3, SimpleNamespace(device='cpu'))
    assert set(found) == {'names embedded', 'a picture'} and found['a picture'] > 0


def test_an_axis_is_drawn_and_told(growth, tmp_path, capsys):
    assert growth.main(['cache', '--points', '3', '30', '--device', 'cpu', '--out', str(tmp_path), '--folder', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for part in ('all written, s', 'opened, s', 'one of them read, s', 'expected order n^1'):
        assert part in said
    assert (tmp_path / 'growth_cache.png').stat().st_size > 5000
    assert [one['number'] for one in json.loads((tmp_path / 'growth_cache.json').read_text())] == [3, 30]
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]  # entries are gone


def test_memory_is_traced(growth, tmp_path, capsys):
    assert growth.main(['steady', '--iterations', '4', '--out', str(tmp_path)]) == 0
    said = capsys.readouterr().out
    traces = json.loads((tmp_path / 'steady.json').read_text())
    assert set(traces) == set(KINDS) and all(len(trace) == 4 for trace in traces.values()) and 'MiB in 1000 iterations' in said
    assert (tmp_path / 'steady.png').is_file()


def test_mistakes(growth, capsys):
    for wrong, message in ((['speed'], "axes ['speed'] are unknown"), (['size', '--points', '0'], 'at least 1')):
        assert growth.main(wrong) == 2
        assert message in capsys.readouterr().err
