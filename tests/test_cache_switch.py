"""tools/train.py --cache: a config's frozen backbone looks at each image once, and trains what it trained before."""

import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import Dataset

import mmdiffrep  # noqa: F401
from mmdiffrep.datasets import FixedViews
from mmdiffrep.registry import MODELS
from mmdiffrep.utils.cached import with_cache

ROOT = Path(__file__).parents[1]


class Draws(Dataset):
    """Items that take their randomness from everywhere."""

    metainfo = dict(classes=('a',))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index, random.random(), float(np.random.rand()), float(torch.rand(()))


def test_fixed_views_come_again_and_leave_the_generators_alone():
    data = FixedViews(Draws(), views=2, seed=5)
    assert len(data) == 3 and data.metainfo == Draws.metainfo
    seen = {data[i] for i in range(3) for _ in range(30)}
    assert len(seen) == 6 and {item[0] for item in seen} == {0, 1, 2}
    assert len({item[1] for item in seen}) == len({item[2] for item in seen}) == len({item[3] for item in seen}) == 6
    assert {FixedViews(Draws(), 2, 5).view(i, k) for i in range(3) for k in range(2)} == seen
    assert data.view(0, 0) != FixedViews(Draws(), 2, 6).view(0, 0)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    data.view(1, 1)
    after = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert after == (random.random(), np.random.rand(), float(torch.rand(())))
    with pytest.raises(ValueError, match='views=0'):
        FixedViews(Draws(), 0)


@pytest.fixture
def config(tmp_path, tiny_config):
    """Four images of two classes, mirrored at random, on a tiny network with a trained adapter."""
    draws = np.random.default_rng(0)
    for k in range(2):
        (tmp_path / f'images/c{k}').mkdir(parents=True)
        for i in range(2):
            cv2.imwrite(str(tmp_path / f'images/c{k}/{i}.png'), draws.integers(256, size=(16, 16, 3), dtype=np.uint8))

    def make(transforms=(dict(type='RandomHorizontalFlip'),), **backbone):
        denoiser = dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0)
        backbone = dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=['down_blocks.1.attentions.0', 'up_blocks.1'], image_mean=[0.0] * 3,
            image_std=[1.0] * 3, adapter=dict(type='mmdiffrep.LayerMixing', out_channels=8, groups=2), **backbone,
        )  # fmt: skip
        data = dict(type='mmdiffrep.ImageClassification', data_root=str(tmp_path / 'images'), transforms=list(transforms))
        return Config(
            dict(
                default_scope='mmengine', work_dir=str(tmp_path / 'run'), randomness=dict(seed=0), experiment_name='cache',
                model=dict(
                    type='mmdiffrep.DiffusionClassifier', data_preprocessor=dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True),
                    backbone=backbone, head=dict(type='mmdiffrep.PooledHead', num_classes=2, in_channels=[8]),
                ),
                train_dataloader=dict(
                    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True), collate_fn=dict(type='pseudo_collate'), dataset=data,
                ),
                train_cfg=dict(by_epoch=True, max_epochs=4), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.05)),
                default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=1)),
            )
        )  # fmt: skip

    return make


def trained(cfg, work_dir):
    cfg.work_dir = str(work_dir)
    runner = Runner.from_cfg(cfg)
    looks = []
    backbone = runner.model.backbone
    getattr(backbone, 'backbone', backbone).denoiser.network.register_forward_pre_hook(lambda _, inputs: looks.append(len(inputs[0])))
    runner.train()
    return runner.model, sum(looks)


def test_a_cached_training_ends_with_the_same_weights(config, tmp_path):
    plain, looks = trained(config(), tmp_path / 'plain')
    assert looks == 16
    cached, looks = trained(with_cache(config(), tmp_path / 'kept', dtype='fp32'), tmp_path / 'cached')
    assert looks <= 8  # four images, and mirrored
    again, looks = trained(with_cache(config(), tmp_path / 'kept', dtype='fp32'), tmp_path / 'again')
    assert looks == 0
    weights = {name: p for name, p in plain.named_parameters() if p.requires_grad}
    assert any(name.startswith('backbone.adapter.mixing') for name in weights)
    for other in (cached, again):
        found = {name: p for name, p in other.named_parameters() if p.requires_grad}
        assert found.keys() == weights.keys()  # so that checkpoints go from one to the other
        for name, p in weights.items():
            torch.testing.assert_close(found[name], p, rtol=1e-3, atol=1e-5)


def test_random_crops_need_fixed_views(config, tmp_path):
    crops = (dict(type='RandomCrop', size=8), dict(type='RandomHorizontalFlip'))
    with pytest.raises(ValueError, match=r"has \['RandomCrop'\].*--views 4"):
        with_cache(config(crops), tmp_path)
    cfg = with_cache(config(crops), tmp_path / 'kept', views=2)
    _, looks = trained(cfg, tmp_path / 'run')
    assert 4 <= looks <= 8
    cfg = with_cache(cfg, tmp_path / 'other', views=3)  # once more: nothing is wrapped twice
    assert cfg.train_dataloader.dataset.views == 3 and cfg.train_dataloader.dataset.dataset.type == 'mmdiffrep.ImageClassification'
    assert cfg.model.backbone.folder == str(tmp_path / 'other') and cfg.model.backbone.backbone.type == 'mmdiffrep.DiffusionBackbone'


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(trainable=True), 'is trained'),
        (dict(noise=dict(kind='fresh')), 'draws fresh noise'),
        (dict(conditioner=dict(type='mmdiffrep.TextAdapter')), 'a conditioner that is trained'),
        (dict(type='mmdiffrep.FeedbackBackbone'), 'feedback nets'),
    ],
)
def test_features_that_may_not_be_kept(config, change, message, tmp_path):
    cfg = config()
    cfg.model.backbone.update(change)
    with pytest.raises(ValueError, match=message):
        with_cache(cfg, tmp_path)
    with pytest.raises(ValueError, match='no model.backbone'):
        with_cache(Config(dict(model=dict(type='x'))), tmp_path)


@pytest.mark.skipif(not (ROOT / 'configs').is_dir(), reason='the tests do not run in a checkout')
def test_what_the_configs_allow():
    """Each config's features can be kept, or the reason is said."""
    said = {}
    for path in sorted(ROOT.glob('configs/*/*.py')):
        cfg = Config.fromfile(path)
        if 'train_dataloader' not in cfg or 'backbone' not in cfg.get('model', {}) or path.parent.name == 'dift':
            continue
        try:
            kept = with_cache(cfg, 'kept', views=2)
        except ValueError as error:
            said[path.stem] = str(error)
        else:
            assert kept.model.backbone.type == 'mmdiffrep.CachedBackbone'
            assert kept.train_dataloader.dataset.type == 'mmdiffrep.FixedViews'
    assert 'is trained' in said['ddae_cifar-unet_finetune_15e_cifar10-32x32']
    assert 'conditioner' in said['odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024']
    assert not any('fpn_300i' in name for name in said)


def test_a_cached_backbone_with_its_adapter(tiny_config, tmp_path):
    backbone = dict(
        type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny_config, random_seed=0), taps=['mid_block', 'up_blocks.1'],
    )  # fmt: skip
    adapter = dict(type='mmdiffrep.StridePyramid', out_channels=8, width=4, groups=2, strides=(2, 4))
    model = MODELS.build(dict(type='mmdiffrep.CachedBackbone', backbone=backbone, adapter=adapter, dtype='fp32'))
    whole = MODELS.build(dict(backbone, adapter=adapter))
    whole.adapter.load_state_dict(model.adapter.state_dict())
    image = torch.randn(2, 3, 18, 26)  # no multiple of the divisor
    for a, b in zip(model(image), whole(image)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert model.out_channels == whole.out_channels and model.out_strides == whole.out_strides
    model(image)[0].sum().backward()
    assert all(p.grad is not None for p in model.adapter.projections[0].parameters())
    model.eval()
    assert not model.adapter.training and model.train().adapter.training and not model.backbone.training


# ---- tools/extract.py -----------------------------------------------------------------------------------------


@pytest.fixture
def extract(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import importlib

    return importlib.import_module('extract').main


@pytest.mark.skipif(not (ROOT / 'tools').is_dir(), reason='the tests do not run in a checkout')
def test_each_process_of_a_launcher_extracts_its_part(config, extract, tmp_path, capsys, monkeypatch):
    config().dump(tmp_path / 'config.py')
    options = [str(tmp_path / 'config.py'), '--cache', str(tmp_path / 'kept'), '--views', '2', '--device', 'cpu']
    monkeypatch.setenv('WORLD_SIZE', '3')
    for rank, images in (('0', 3), ('1', 3), ('2', 2)):
        monkeypatch.setenv('RANK', rank)
        assert extract(options) == 0
        assert f'{images} images in' in capsys.readouterr().out
    monkeypatch.setenv('WORLD_SIZE', '1')
    monkeypatch.setenv('RANK', '0')
    assert extract(options) == 0
    assert ': 0 looked at, 8 kept before' in capsys.readouterr().out


@pytest.mark.skipif(not (ROOT / 'tools').is_dir(), reason='the tests do not run in a checkout')
def test_what_was_extracted_is_trained_on_without_a_look(config, extract, tmp_path, capsys, on_accelerator):
    crops = (dict(type='RandomCrop', size=8), dict(type='RandomHorizontalFlip'))
    config(crops).dump(tmp_path / 'config.py')
    options = [str(tmp_path / 'config.py'), '--cache', str(tmp_path / 'kept'), '--views', '2', '--device', 'cuda']
    for shard, images in (('0/2', 4), ('1/2', 4)):
        assert extract([*options, '--shard', shard]) == 0
        assert f'{images} images' in capsys.readouterr().out
    assert extract(options) == 0
    assert '8 images in' in (said := capsys.readouterr().out) and ': 0 looked at, 8 kept before' in said
    cfg = with_cache(Config.fromfile(tmp_path / 'config.py'), tmp_path / 'kept', views=2)
    _, looks = trained(cfg, tmp_path / 'run')
    assert looks == 0
    for wrong, message in (
        (['--shard', '2/2'], '--shard 2/2 does not fit'),
        (['--parts', 'test'], "none of the parts ['test']"),
        (['--cfg-options', 'model.backbone.trainable=True'], 'is trained'),
    ):
        assert extract([*options, *wrong]) == 2
        assert message in capsys.readouterr().err
