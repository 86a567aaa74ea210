"""tools/benchmark.py: both ways give the same answers on small networks; what is counted, said and refused."""

import copy
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

import mmdiffrep  # noqa: F401
from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.diffusion.speed import Remembered
from mmdiffrep.utils.bench import measure as measuring
from mmdiffrep.utils.bench import networks, published, study
from mmdiffrep.utils.bench.case import picture
from mmdiffrep.utils.bench.scenarios import SCENARIOS
from mmdiffrep.utils.comparison.flops import count_flops

ODISE = 'vae.encoder.down_blocks.2.resnets.0:in,up_blocks.0.resnets.2:in,up_blocks.3.resnets.2:in,vae.decoder.up_blocks.1.resnets.1:in'
ROOT = Path(__file__).parents[1]
CLIP = dict(
    embed_dim=12, vision_cfg=dict(image_size=32, layers=2, width=16, head_width=8, patch_size=8),
    text_cfg=dict(context_length=8, vocab_size=40, width=8, heads=1, layers=1),
)  # fmt: skip


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


@pytest.mark.parametrize('name', ['look-sd15', 'windows', 'vpd', 'loading'])
def test_whole_networks_answer_the_same(name, tiny_sd_config, tmp_path):
    answers = []
    for implementation in SCENARIOS[name].implementations[:2]:
        tap = ODISE if name == 'windows' else 'up_blocks.1'
        s = settings(dict(tiny_sd_config), size=128 if name == 'windows' else 64, batch=2, tap=tap, shared=str(tmp_path))
        case = SCENARIOS[name].make(implementation, SimpleNamespace(**s))
        with torch.inference_mode():
            answers.append(case.call())
    assert answers[0].keys() == answers[1].keys() and len(answers[0]) == dict(windows=4, vpd=10).get(name, 1)
    assert study.difference(*answers) < 1e-4


@pytest.mark.parametrize('name', ['mmseg', 'odise'])
def test_steps_of_the_toolkits_heads_learn_the_same(name, tiny_sd_config, tmp_path):
    """Two steps, so that the gradients of the first show; whole networks cost more."""
    pytest.importorskip('mmseg' if name == 'mmseg' else 'mmdet')
    config = copy.deepcopy(tiny_sd_config)
    config['vae']['layers_per_block'] = 2  # the configs' taps
    if name == 'odise':
        (tmp_path / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=CLIP, preprocess_cfg={})))
        config['clip'] = str(tmp_path)
    answers, flops = [], []
    for implementation in ('ours', 'published'):
        case = SCENARIOS[name].make(implementation, SimpleNamespace(**settings(config, size=128)))
        answers.append([case.call(), case.call()])
        flops.append(measuring.flops_of(case.call))
    for first, second in zip(*answers):
        assert study.difference(first, second) < 1e-3
    assert answers[0][0]['loss'] != answers[0][1]['loss'] and answers[0][0]['gradient'] > 0
    assert flops[0] < flops[1]


def test_a_published_window_is_told_what_the_captioner_says(small_sd_config):
    net = networks.network(SimpleNamespace(**settings(small_sd_config)), None, ours=False)
    image, noise = picture(32, 'cpu'), NoisePolicy('shared', 7, 1)
    tokens, bias = net.tokens + 1, torch.ones(1, net.unet.time_embedding.linear_2.out_features)
    found = []
    with torch.no_grad():
        for told in ((None, None), (tokens, None), (None, bias)):
            got = published.odise_window(net, None, image, ['up_blocks.1'], 10, noise, *told, decode=False)
            condition = Condition(tokens=net.tokens if told[0] is None else tokens, time_bias=told[1])
            want = FeatureExtractor(net, ['up_blocks.1'], 10, noise)(image, condition)
            torch.testing.assert_close(got['up_blocks.1'], want[0], rtol=1e-4, atol=1e-5)
            found.append(want[0])
    assert all((found[0] - other).abs().max() > 1e-3 for other in found[1:])


def test_the_published_networks_are_untouched(small_sd_config):
    net = networks.network(SimpleNamespace(**settings(small_sd_config)), None, ours=False)
    assert not any('forward' in vars(module) for module in net.network.modules())
    again = networks.network(SimpleNamespace(**settings(small_sd_config)), ['up_blocks.1'], ours=True)
    assert any(isinstance(vars(module).get('forward'), Remembered) for module in again.network.modules())


def test_flops_are_counted_without_arithmetic(small_sd_config):
    """Like those of a real call; what looks at values is called."""
    for name in ('published', 'ours'):
        case = SCENARIOS['look-sd15'].make(name, SimpleNamespace(**settings(small_sd_config, tap='up_blocks.0')))
        with torch.inference_mode():
            found = measuring.flops_of(case.call)
            answer = case.call()  # nothing fake is left behind
            counted = count_flops(case.call)
            assert study.difference(case.call(), answer) == 0
        if name == 'published':
            assert found == counted > 0
        else:  # ours remembers text and timestep from the first call on
            assert counted < found < 1.01 * counted
    a, b = torch.randn(2, 16, 16)
    assert measuring.flops_of(lambda: a @ b if float(a.sum()) < 1e9 else a) == 2 * 16**3
    seen = []
    measuring.flops_of(lambda: seen.append(type(a @ b)))
    assert seen == [FakeTensor]


def test_extraction_of_other_families_answers_the_same(tiny_config, tiny_dit_config):
    for config, tap in ((tiny_config, 'mid_block,up_blocks.1'), (tiny_dit_config, 'transformer_blocks.1')):
        answers = []
        for implementation in ('ours', 'published'):
            case = SCENARIOS['look-sd15'].make(implementation, SimpleNamespace(**settings(config, size=256 if 'transformer' in config else 32, tap=tap)))
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
    found, answer = measuring.Measured(settings(scenario='matching', implementation='ours', size=32, calls=2))(count=True)
    assert found['seconds'] > 0 and found['images'] == 2 and found['peak'] > found['beside'] >= 0 and found['flops'] is None
    assert answer['places'].shape == (5, 2)


def test_differences_and_the_table():
    a = dict(x=torch.tensor([1.0, 2.0]))
    assert study.difference(a, dict(x=torch.tensor([1.0, 2.5]))) == pytest.approx(0.2)
    with pytest.raises(ValueError, match='differ in shape'):
        study.difference(a, dict(x=torch.zeros(3)))
    ours = study.Outcome('pair', 'ours', [2.0, 1.0, 3.0], 2, 2**31, 2**29, 10**12)
    theirs = study.Outcome('pair', 'published', [8.0], 2, 2**32, 2**31, 3 * 10**12)
    aside = study.Outcome('correspondence', 'ours', [1.0]), study.Outcome('correspondence', 'published', [2.0])
    assert ours.median == 2 and ours.spread == 2
    text = study.markdown([ours, theirs, *aside], dict(pair=1e-6, correspondence=0), dict(vpd='no memory'), settings(threads=1), 1e12)
    assert '4.00× as fast as "published", 0.25 of its memory' in text and '2.00× as fast as "published" (wanted: 3.5×)' in text and 'vpd failed: no memory' in text
    assert '50 %' in text and 'at most 1.0e-06' in text
    assert study.drawn([ours, theirs]).ndim == 3
    assert study.matrix_peak('cpu', 1, 64, 2) > 0


@pytest.mark.skipif(not (ROOT / 'tools').is_dir(), reason='the tests do not run in a checkout')
def test_the_tool(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    main = importlib.import_module('benchmark').main
    assert main(['matching', '--size', '32', '--rounds', '2', '--out', str(tmp_path)]) == 0
    assert 'matching' in capsys.readouterr().out
    saved = json.loads((tmp_path / 'benchmark.json').read_text())
    assert [(one['implementation'], len(one['seconds'])) for one in saved] == [('ours', 2), ('published', 2)] and (tmp_path / 'benchmark.png').is_file()
    for wrong, message in ((['fly'], "['fly'] are unknown"), (['pair', '--rounds', '0'], 'give at least 1'), (['matching', 'correspondence', '--size', '32', '--rounds', '1', '--model', 'nothing'], 'nothing')):
        assert main([*wrong, '--out', str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    # what did not fail is there
    assert [one['scenario'] for one in json.loads((tmp_path / 'benchmark.json').read_text())] == ['matching'] * 2
    assert 'correspondence failed' in (tmp_path / 'benchmark.md').read_text()
