"""tools/benchmark.py: both ways give the same answers on small networks; what is counted, said and refused."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import mmdiffrep  # noqa: F401
from mmdiffrep.utils.bench import measure as measuring
from mmdiffrep.utils.bench import published, study
from mmdiffrep.utils.bench.scenarios import SCENARIOS

ODISE = 'vae.encoder.down_blocks.2.resnets.0:in,up_blocks.0.resnets.2:in,up_blocks.3.resnets.2:in,vae.decoder.up_blocks.1.resnets.1:in'
ROOT = Path(__file__).parents[1]


def settings(model=None, **changes):
    found = dict(
        model=model, size=32, batch=1, tap='up_blocks.1', timestep=261, draws=3, looks=2, points=5, calls=1, threads=1, device='cpu', warm_up=0, count=False,
    )  # fmt: skip
    return {**found, **changes}


@pytest.mark.parametrize('name', ['correspondence', 'pair', 'head'])
def test_the_published_way_answers_the_same(name, small_sd_config):
    answers = []
    for implementation in SCENARIOS[name].implementations[:2]:
        case = SCENARIOS[name].make(implementation, SimpleNamespace(**settings(small_sd_config, tap='up_blocks.0')))
        with torch.inference_mode(name != 'head'):
            answers.append(case.call())
        if name == 'head':  # steps change the head
            answers[-1] = case.call()
    assert study.difference(*answers) < 1e-4 and answers[0].keys() == answers[1].keys()


@pytest.mark.parametrize('name', ['extraction', 'training', 'windows', 'vpd'])
def test_whole_networks_answer_the_same(name, tiny_sd_config):
    config = dict(tiny_sd_config)
    answers = []
    for implementation in SCENARIOS[name].implementations[:2]:
        s = SimpleNamespace(**settings(config, size=128 if name == 'windows' else 64, batch=2, tap=ODISE if name == 'windows' else 'up_blocks.1'))
        case = SCENARIOS[name].make(implementation, s)
        with torch.inference_mode(not SCENARIOS[name].learns):
            answers.append(case.call())
        if SCENARIOS[name].learns:  # steps change the head alike
            answers[-1] = case.call()
    assert answers[0].keys() == answers[1].keys() and len(answers[0]) == dict(extraction=1, training=1, windows=4, vpd=10)[name]
    assert study.difference(*answers) < 1e-4


def test_extraction_of_other_families_answers_the_same(tiny_config, tiny_dit_config):
    for config, tap in ((tiny_config, 'mid_block,up_blocks.1'), (tiny_dit_config, 'transformer_blocks.1')):
        answers = []
        for implementation in ('ours', 'published'):
            case = SCENARIOS['extraction'].make(implementation, SimpleNamespace(**settings(config, size=256 if 'transformer' in config else 32, tap=tap)))
            with torch.inference_mode():
                answers.append(case.call())
        assert study.difference(*answers) < 1e-4


def test_switches_answer_nearly_the_same(tiny_config):
    answers = {}
    for name in ('ours', 'no channels_last', 'fuse_qkv', 'bf16'):
        case = SCENARIOS['switches'].make(name, SimpleNamespace(**settings(tiny_config)))
        with torch.inference_mode():
            answers[name] = case.call()
    for name, most in (('no channels_last', 1e-4), ('fuse_qkv', 1e-4), ('bf16', 0.2)):
        assert study.difference(answers['ours'], answers[name]) < most
    assert study.difference(answers['ours'], answers['bf16']) > 1e-4


def test_ten_classifiers_learn_the_same():
    answers = []
    for implementation in ('ours', 'published'):
        case = SCENARIOS['ensemble'].make(implementation, SimpleNamespace(**settings()))
        case.call()
        answers.append(case.call())
    assert study.difference(*answers) < 1e-3


def test_only_ours_stops_and_encodes_once(small_sd_config):
    looks = {}
    for implementation in ('ours', 'published'):
        s = SimpleNamespace(**settings(small_sd_config, tap='up_blocks.0'))
        flops = torch.utils.flop_counter.FlopCounterMode(display=False)
        case = SCENARIOS['correspondence'].make(implementation, s)
        with flops, torch.no_grad():
            case.call()
        looks[implementation] = flops.get_total_flops()
    assert looks['ours'] < 0.7 * looks['published']


@pytest.mark.parametrize('name', ['matching', 'pixels'])
def test_resized_scores_and_resized_features_say_the_same(name):
    first, second = (SCENARIOS[name].make(i, SimpleNamespace(**settings(size=64))).call() for i in ('ours', 'published'))
    assert study.difference(first, second) < 1e-5


def test_the_published_pixels_by_hand():
    maps = [torch.randn(3, 4, 4), torch.randn(2, 2, 2)]
    y, x = torch.tensor([0, 7]), torch.tensor([3, 5])
    got = published.ddpm_seg_pixels(maps, y, x, (8, 8))
    for k in range(2):
        want = torch.cat([F.interpolate(m[None], (8, 8), mode='bilinear')[0, :, y[k], x[k]] for m in maps])
        assert torch.allclose(got[k], want)
    with pytest.raises(ValueError, match="block 'never' is not run"):
        net = torch.nn.ModuleDict(dict(never=torch.nn.Identity()))
        net.forward = lambda: None
        published.until(net, 'never')


def test_a_case_is_measured():
    found, answer = measuring.measure(settings(scenario='matching', implementation='ours', size=32, calls=2))
    assert found['seconds'] > 0 and found['images'] == 2 and found['peak'] > found['beside'] >= 0 and found['flops'] is None
    assert answer['places'].shape == (5, 2)


def test_differences_and_the_table():
    a = dict(x=torch.tensor([1.0, 2.0]))
    assert study.difference(a, dict(x=torch.tensor([1.0, 2.5]))) == pytest.approx(0.2)
    with pytest.raises(ValueError, match='differ in shape'):
        study.difference(a, dict(x=torch.zeros(3)))
    ours = study.Outcome('pair', 'ours', [2.0, 1.0, 3.0], 2, 2**31, 2**29, 10**12)
    theirs = study.Outcome('pair', 'published', [8.0], 2, 2**32, 2**31, 3 * 10**12)
    assert ours.median == 2 and ours.spread == 2
    text = study.markdown([ours, theirs], dict(pair=1e-6), settings(threads=1), 1e12)
    assert '4.00× as fast as "published" (wanted: 3×), 0.25 of its memory' in text and '50 %' in text and 'at most 1.0e-06' in text
    assert study.drawn([ours, theirs]).ndim == 3
    assert study.matrix_peak('cpu', 1, 64, 2) > 0


@pytest.mark.skipif(not (ROOT / 'tools').is_dir(), reason='the tests do not run in a checkout')
def test_the_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    main = importlib.import_module('benchmark').main
    assert main(['matching', '--size', '32', '--rounds', '1', '--out', str(tmp_path)]) == 0
    assert 'matching' in capsys.readouterr().out
    saved = json.loads((tmp_path / 'benchmark.json').read_text())
    assert [one['implementation'] for one in saved] == ['ours', 'published'] and (tmp_path / 'benchmark.png').is_file()
    for wrong, message in ((['fly'], "['fly'] are unknown"), (['pair', '--rounds', '0'], 'give at least 1'), (['correspondence', '--model', 'nothing'], 'nothing')):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err
