"""tools/sweep.py: one look a timestep, cells equal to the backbone's own maps, kept and resumed, what is refused."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmdiffrep  # noqa: F401
from mmdiffrep.evaluation.linear_probe import linear_probe
from mmdiffrep.registry import DATASETS, MODELS

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/ddae/ddae_cifar-unet_linear_15e_cifar10-32x32.py'
pytestmark = pytest.mark.skipif(not CONFIG.is_file(), reason='the tests do not run in a checkout')
COLOURS = [(220, 40, 40), (40, 220, 40), (40, 40, 220)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp('sweep')
    draws = np.random.default_rng(0)
    for part, count in (('train', 8), ('val', 4)):
        for k, colour in enumerate(COLOURS):
            (root / 'classes' / part / f'c{k}').mkdir(parents=True)
            for i in range(count):
                picture = np.clip(np.array(colour) + draws.integers(-40, 40, (16, 16, 3)), 0, 255).astype(np.uint8)
                cv2.imwrite(str(root / 'classes' / part / f'c{k}/{i}.png'), picture)
    for name in ('images', 'labels'):
        (root / 'pixels' / name).mkdir(parents=True)
    for i in range(6):
        mask = np.repeat(np.repeat(draws.integers(3, size=(4, 4)), 4, 0), 4, 1).astype(np.uint8)
        picture = np.clip(np.array(COLOURS)[mask] + draws.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        mask[:2] = 255
        cv2.imwrite(str(root / f'pixels/images/{i}.png'), picture)
        cv2.imwrite(str(root / f'pixels/labels/{i}.png'), mask)
    (root / 'pairs' / 'images').mkdir(parents=True)
    picture = cv2.resize(draws.integers(256, size=(8, 8, 3), dtype=np.uint8), (16, 16), interpolation=cv2.INTER_NEAREST)
    for name in 'ab':
        cv2.imwrite(str(root / f'pairs/images/{name}.png'), picture)
    points = [[2, 4], [10, 13], [6, 0]]
    pair = dict(source='a.png', target='b.png', source_points=points, target_points=points, target_box=[0, 0, 16, 16])
    (root / 'pairs' / 'pairs.json').write_text(json.dumps([pair]))
    return root


@pytest.fixture
def config(files, tmp_path, tiny_config):
    def make(kind='classes', **backbone):
        denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=3)
        own = dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['mid_block'], timesteps=10,
            image_mean=[0] * 3, image_std=[1] * 3, **backbone,
        )  # fmt: skip
        cfg = Config.fromfile(CONFIG)
        cfg.model.backbone = dict(type='mmdiffrep.CachedBackbone', backbone=own)
        cfg.train_dataloader.dataset.update(data_root=str(files / 'classes'), part='train', last=None)
        cfg.val_dataloader.dataset.update(data_root=str(files / 'classes'), part='val', first=0)
        if kind == 'pixels':
            pytest.importorskip('mmseg')
            cfg = Config.fromfile(ROOT / 'configs/ddpm_seg/ddpm-seg_pixels_2k_toyscenes-128x128.py')
            cfg.model.backbone = own
            cfg.model.data_preprocessor.update(mean=[0] * 3, std=[1] * 3)
            load = [dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations'), dict(type='mmseg.PackSegInputs')]
            data = dict(
                type='mmdiffrep.SegFolder', data_root=str(files / 'pixels'), img_suffix='.png', seg_map_suffix='.png',
                data_prefix=dict(img_path='images', seg_map_path='labels'), metainfo=dict(classes=['a', 'b', 'c']), pipeline=load,
            )  # fmt: skip
            cfg.train_dataloader.dataset.dataset = cfg.val_dataloader.dataset = data
        path = tmp_path / 'config.py'
        cfg.dump(path)
        return path

    return make


def sweep(tool, path, out, *options):
    return tool('sweep')([str(path), '--out', str(out), '--batch-size', '5', '--epochs', '3', *options])


@pytest.fixture
def tool():
    def load(name):
        scope = {'__name__': name}
        exec(compile((ROOT / f'tools/{name}.py').read_text(), name, 'exec'), scope)
        return scope['main']

    return load


def rows(folder):
    return list(csv.DictReader((folder / 'sweep.csv').open()))


def test_cells_are_the_backbones_maps_pooled(config, files, tmp_path, tool, capsys):
    path = config()
    assert sweep(tool, path, tmp_path / 'out', '--timesteps', '10', '100', '--seeds', '2', '--untrained') == 0
    found = rows(tmp_path / 'out')
    taps = list(dict.fromkeys(row['tap'] for row in found))
    assert taps[:2] == ['down_blocks.0.resnets.0', 'down_blocks.1.attentions.0'] and 'mid_block' in taps and len(taps) == 10
    assert len(found) == 2 * 2 * 2 * 10
    # the plain way, one tap, one timestep
    cfg = Config.fromfile(path)
    own = cfg.model.backbone.backbone
    tap = 'up_blocks.1.attentions.0'
    backbone = MODELS.build(dict(own, taps=[tap], timesteps=100, noise=dict(kind='shared', seed=1))).eval()
    sets = []
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        data = DATASETS.build(dict(loader.dataset, transforms=[]))
        images = torch.stack([data[i]['inputs'] for i in range(len(data))]).flip(1).float()
        with torch.no_grad():
            sets += [backbone(images)[0].mean((2, 3)), torch.tensor(data.labels)]
    want = linear_probe(*sets, epochs=3, seed=1)
    (cell,) = [r for r in found if (r['network'], r['seed'], r['timestep'], r['tap']) == ('pre-trained', '1', '100.0', tap)]
    assert float(cell['score']) == pytest.approx(want)
    assert 1 <= float(cell['rank']) <= 12 and 0 < float(cell['agreement']) <= 1.0001
    # what is written to be pasted
    best = Config.fromfile(tmp_path / 'out' / 'best.py').model.backbone.backbone
    means = {}
    for r in found:
        if r['network'] == 'pre-trained':
            means.setdefault((r['tap'], float(r['timestep'])), []).append(float(r['score']))
    assert np.mean(means[best.taps[0], best.timesteps]) == pytest.approx(max(map(np.mean, means.values())))
    text = capsys.readouterr().out
    assert 'largest effective rank' in text and 'largest agreement of two draws' in text and 'pixels alone' in text
    assert cv2.imread(str(tmp_path / 'out/sweep.png')).std() > 10


def test_one_look_a_timestep(config, tmp_path, tool):
    """24 + 12 images at 3 timesteps, and the 12 once more for the second draw; not once for each of ten taps."""
    assert sweep(tool, config(), tmp_path / 'out', '--timesteps', '10', '50', '100') == 0
    about = json.loads((tmp_path / 'out/sweep.json').read_text())
    assert about['looks'] == {'pre-trained': 3 * (24 + 12 + 12)} and about['images'] == 36
    assert len(rows(tmp_path / 'out')) == 30


def test_an_interrupted_sweep_goes_on(config, tmp_path, tool, capsys):
    path = config()
    options = ('--timesteps', '10', '50', '--taps', 'mid_block', 'up_blocks.*.resnets.0', '--noise', 'fresh')
    assert sweep(tool, path, tmp_path / 'whole', *options) == 0
    assert sweep(tool, path, tmp_path / 'cut', *options) == 0
    assert rows(tmp_path / 'whole') == rows(tmp_path / 'cut')
    kept = sorted((tmp_path / 'cut/cells').iterdir())
    assert len(kept) == 2
    text = kept[0].read_text()
    kept[0].write_text(text.replace('"rank": ', '"rank": 1'))  # a number that nobody computed
    capsys.readouterr()
    assert sweep(tool, path, tmp_path / 'cut', *options) == 0
    assert 'of other settings or damaged: computed anew' in capsys.readouterr().out
    assert json.loads((tmp_path / 'cut/sweep.json').read_text())['looks']['pre-trained'] == 24 + 12 + 12
    assert rows(tmp_path / 'whole') == rows(tmp_path / 'cut')
    assert sweep(tool, path, tmp_path / 'cut', *options[:3], *options[3:], '--train', '12') == 0
    assert json.loads((tmp_path / 'cut/sweep.json').read_text())['looks']['pre-trained'] == 2 * (12 + 12 + 12)


def test_segmentation_and_correspondence(config, files, tmp_path, tool, on_accelerator):
    path = config('pixels')
    assert sweep(tool, path, tmp_path / 'pixels', '--timesteps', '0', '--pixels', '60', '--epochs', '60', '--device', 'cuda') == 0
    found = {r['tap']: float(r['score']) for r in rows(tmp_path / 'pixels')}
    assert found['down_blocks.0.resnets.0'] > 80  # colours are still there, at the pixels' own places
    assert found['mid_block'] < found['down_blocks.0.resnets.0']
    pairs = ('--probe', 'correspondence', '--pairs', str(files / 'pairs/pairs.json'), '--noise', 'none', '--device', 'cuda')
    assert sweep(tool, config(), tmp_path / 'pairs', '--timesteps', '0', *pairs) == 0
    found = {r['tap']: float(r['score']) for r in rows(tmp_path / 'pairs')}
    assert found['down_blocks.0.resnets.0'] == 100  # an image matched with itself


def test_a_config_that_matches_points_is_scored_as_its_runner_does(files, tmp_path, tiny_config, tool):
    """Images of two sizes, resized for the network and normalised as the backbone expects, on the config's own pairs."""
    draws = np.random.default_rng(0)
    folder = tmp_path / 'images'
    folder.mkdir()
    pairs = []
    for i in range(3):
        for side, size in (('a', (20, 26)), ('b', (33, 24))):
            cv2.imwrite(str(folder / f'{i}{side}.png'), cv2.resize(draws.integers(256, size=(6, 6, 3), dtype=np.uint8), size[::-1]))
        points = [draws.integers(0, 20, (4, 2)).tolist() for _ in range(2)]
        pairs.append(dict(source=f'{i}a.png', target=f'{i}b.png', source_points=points[0], target_points=points[1], target_box=[0, 0, 40, 20]))
    (tmp_path / 'pairs.json').write_text(json.dumps(pairs))
    cfg = Config.fromfile(ROOT / 'configs/dift/dift_toy-unet_toyscenes-128x128.py')
    cfg.model.size = 24
    cfg.model.backbone.denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=3)
    cfg.model.backbone.update(taps=['up_blocks.1.resnets.0'], timesteps=5)
    cfg.test_dataloader.dataset.data_root = str(tmp_path)
    cfg.dump(tmp_path / 'matcher.py')
    assert sweep(tool, tmp_path / 'matcher.py', tmp_path / 'out', '--timesteps', '5', '--taps', 'up_blocks.1.resnets.0') == 0
    (cell,) = rows(tmp_path / 'out')
    model, data = MODELS.build(cfg.model).eval(), DATASETS.build(cfg.test_dataloader.dataset)
    right = []
    for item in (data[i] for i in range(3)):
        sample = item['data_samples']
        found = model.match(*(item['inputs'][side].flip(0) for side in ('source', 'target')), sample.source_points)
        right.append((found.points - sample.target_points).norm(dim=1) <= 4)
    want = 100 * float(torch.cat(right).float().mean())
    assert float(cell['score']) == pytest.approx(want, abs=0.01) and 0 < want < 100


@pytest.mark.parametrize(
    'options, message',
    [
        (['--timesteps', '1000'], '1000'),
        (['--taps', 'up_blocks.7*'], "'up_blocks.7*' fits no tap"),
        (['--probe', 'segmentation'], 'does not fit a config of classification'),
        (['--memory', '0.000001'], 'take fewer images'),
        (['--probe', 'correspondence', '--pairs', 'nowhere.json'], 'nowhere.json: no such file'),
        (['--cfg-options', 'model.backbone.type=mmdiffrep.RawPixels'], "backbone is RawPixels"),
        (['--val', '0'], '0 images were asked for'),
        (['--cfg-options', 'val_dataloader=None'], 'no val_dataloader'),
    ],
)
def test_what_does_not_fit_is_refused(options, message, config, tmp_path, tool, capsys):
    assert sweep(tool, config(), tmp_path / 'out', *options) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
