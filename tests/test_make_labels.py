"""Pseudo-labels: ranking, going on after an interruption, the exported data set, and models of mmseg that train on it."""

import csv
import importlib.util
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.structures import PixelData

import mmdiffrep  # noqa: F401

pytest.importorskip('mmseg')
from mmseg.models.segmentors import BaseSegmentor  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from mmdiffrep.apis.generative import draw_images, load_generative  # noqa: E402
from mmdiffrep.apis.pseudo_labels import PseudoLabels, kept_of, names_of, snippet  # noqa: E402
from mmdiffrep.registry import DATASETS  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ('dark', 'light')


@MODELS.register_module(force=True)
class LabelsTestModel(BaseSegmentor):
    """Light pixels are class 1; the less red an image, the less sure of it. ``seen``: how often it was asked."""

    seen = 0

    def __init__(self, tells=True, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.tells = tells
        self.weight = torch.nn.Parameter(torch.full((1,), scale))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        for image, sample in zip(inputs, data_samples):
            type(self).seen += 1
            bgr = image.float()
            sample.pred_sem_seg = PixelData(data=(bgr.mean(0, keepdim=True) > 127).long())
            if self.tells:
                sample.set_field(1 - float(bgr[2].mean() * self.weight) / 255, 'image_uncertainty')
        return data_samples

    def encode_decode(self, inputs, metas): ...
    def extract_feat(self, inputs): ...
    def loss(self, inputs, samples): ...
    def predict(self, inputs, samples=None): ...
    def _forward(self, inputs, samples=None): ...


CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
model = dict(type='LabelsTestModel')
test_dataloader = dict(dataset=dict(type='mmdiffrep.LabelSubset', dataset=dict(
    type='mmdiffrep.SegFolder', data_root='not/there', data_prefix=dict(img_path='images', seg_map_path='labels'),
    metainfo=dict(classes=['dark', 'light'], palette=[[0, 0, 0], [255, 255, 255]]),
    pipeline=[dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations'), dict(type='mmdiffrep.CheckLabels'),
              dict(type='mmseg.PackSegInputs')])))
"""


def tool(name):
    path = ROOT / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tools_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setting(tmp_path):
    """Config, checkpoint, a folder of ten images whose names are in the order of their uncertainty; a function that labels."""
    (tmp_path / 'config.py').write_text(CONFIG)
    torch.save(dict(state_dict=LabelsTestModel().state_dict()), tmp_path / 'iter_1.pth')
    photos = tmp_path / 'photos'
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        picture = rng.integers(0, 256, (64 + i, 80, 3), np.uint8)
        picture[..., 2] = 250 - 20 * i
        cv2.imwrite(str(photos / f'{i}.{"png" if i % 2 else "jpg"}'), picture)
    main = tool('make_labels').main

    def label(*more, images=(str(photos),), out=tmp_path / 'out'):
        LabelsTestModel.seen = 0
        return main(
            [
                str(tmp_path / 'config.py'),
                str(tmp_path / 'iter_1.pth'),
                *images,
                '--out',
                str(out),
                *more,
            ]
        )

    return tmp_path, label


def ranking(out):
    with open(out / 'ranking.csv', newline='') as file:
        return list(csv.DictReader(file))


# ---- ranking --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'count, keep, kept',
    [
        (10, 0.9, 9),
        (15, 0.9, 14),
        (9, 0.9, 9),
        (100, 0.9, 90),
        (3, 0.01, 1),
        (7, 1, 7),
        (20, 0.5, 10),
    ],
)
def test_how_many_are_kept(count, keep, kept):
    """The paper leaves out int(0.1 n)."""
    assert kept_of([str(i) for i in range(count)], keep) == [str(i) for i in range(kept)]


def test_the_papers_code_leaves_out_the_most_certain_too():
    order = [str(i) for i in range(1000)]
    assert kept_of(order, 0.9, 30) == order[30 : -100 + 30]
    with pytest.raises(
        ValueError, match='drop_certain=101 does not fit: 900 of 1000 .* allowed: 0 to 100'
    ):
        kept_of(order, 0.9, 101)
    for keep in (0, -1, 1.1):
        with pytest.raises(ValueError, match=f'keep={keep} does not fit'):
            kept_of(order, keep)


def test_equal_names_are_told_apart():
    files = [Path(p) for p in ('a/cow.png', 'b/cow.jpg', 'b/Cow.png', 'b/cow-2.png')]
    assert list(names_of(files)) == ['cow', 'cow-2', 'Cow-3', 'cow-2-2']


# ---- the tool -------------------------------------------------------------------------------------------------


def test_the_most_certain_nine_of_ten_become_a_data_set(setting, capsys):
    tmp_path, label = setting
    assert label() == 0 and LabelsTestModel.seen == 10
    rows = ranking(tmp_path / 'out')
    assert [row['name'] for row in rows] == [str(i) for i in range(10)]
    assert [row['kept'] for row in rows] == ['1'] * 9 + ['0'] and [row['rank'] for row in rows] == [
        *map(str, range(1, 11))
    ]
    assert all(float(a['uncertainty']) < float(b['uncertainty']) for a, b in zip(rows, rows[1:]))
    assert rows[1]['image'] == str(tmp_path / 'photos' / '1.png')
    for part in ('images', 'labels'):
        names = sorted(p.name for p in (tmp_path / 'out' / 'dataset' / part).iterdir())
        assert names == [f'{i}.png' for i in range(9)]
    for row in rows[:9]:
        image = cv2.imread(row['image'])
        assert np.array_equal(
            cv2.imread(str(tmp_path / f'out/dataset/images/{row["name"]}.png')), image
        )
        labels = cv2.imread(
            str(tmp_path / f'out/dataset/labels/{row["name"]}.png'), cv2.IMREAD_UNCHANGED
        )
        assert np.array_equal(labels, image.astype(np.float32).mean(2) > 127)
    printed = capsys.readouterr()
    assert '9 of 10 images are kept' in printed.out and "data_root='" in printed.out
    assert 'ETA' in printed.err  # how long it will take
    assert 'Not drawn by people' in (tmp_path / 'out/dataset/README.md').read_text()


def test_it_goes_on_where_it_was_interrupted(setting, monkeypatch, capsys):
    tmp_path, label = setting
    add, done = PseudoLabels.add, []

    def interrupted(self, name, *rest):
        if len(done) == 4:
            raise KeyboardInterrupt
        done.append(name)
        add(self, name, *rest)

    monkeypatch.setattr(PseudoLabels, 'add', interrupted)
    with pytest.raises(KeyboardInterrupt):
        label()
    assert (
        not (tmp_path / 'out' / 'dataset').exists()
        and not (tmp_path / 'out' / 'ranking.csv').exists()
    )
    monkeypatch.setattr(PseudoLabels, 'add', add)
    assert label() == 0 and LabelsTestModel.seen == 6
    whole = (tmp_path / 'out' / 'ranking.csv').read_text()
    assert label(out=tmp_path / 'again') == 0 and LabelsTestModel.seen == 10
    assert (tmp_path / 'again' / 'ranking.csv').read_text() == whole
    # another share needs no predictions; a changed image needs its own
    assert label('--keep', '0.5', '--drop-certain', '1') == 0 and LabelsTestModel.seen == 0
    assert sorted(p.stem for p in (tmp_path / 'out/dataset/labels').iterdir()) == list('12345')
    cv2.imwrite(str(tmp_path / 'photos' / '9.png'), np.full((64, 64, 3), 255, np.uint8))
    assert label() == 0 and LabelsTestModel.seen == 1
    assert ranking(tmp_path / 'out')[0]['name'] == '9'
    assert not list((tmp_path / 'out').rglob('.*'))  # nothing half written


def test_another_models_predictions_are_not_taken_for_ones_own(setting, capsys):
    tmp_path, label = setting
    assert label() == 0
    torch.save(dict(state_dict=LabelsTestModel(scale=0.5).state_dict()), tmp_path / 'iter_1.pth')
    assert label() == 2
    assert re.search(
        "holds another model's predictions: weights '.*', now '.*'. Give another folder",
        capsys.readouterr().err,
    )
    assert label(out=tmp_path / 'other') == 0


def test_images_are_drawn_from_a_diffusion_model(setting, capsys):
    tmp_path, label = setting
    draw = (
        '--sample',
        '3',
        '--from',
        'mmdiffrep/toy-unet',
        '--steps',
        '2',
        '--size',
        '16',
        '--batch-size',
        '2',
    )
    assert label(*draw, images=()) == 0
    files = sorted((tmp_path / 'out' / 'sampled').glob('*.png'))
    assert [p.name for p in files] == ['00000.png', '00001.png', '00002.png']
    assert {row['name'] for row in ranking(tmp_path / 'out')} == {p.stem for p in files}
    first = [p.read_bytes() for p in files]
    assert len(set(first)) == 3
    # one that is missing is drawn again, the same
    files[1].unlink()
    assert label(*draw, images=()) == 0 and LabelsTestModel.seen == 0
    assert [p.read_bytes() for p in files] == first
    # more of the same can be asked for, other ones cannot
    assert label('--sample', '4', *draw[2:], images=()) == 0 and LabelsTestModel.seen == 1
    assert [p.read_bytes() for p in files] == first
    assert label(*draw, '--seed', '1', images=()) == 2
    assert 'holds images that were drawn otherwise: seed 0, now 1' in capsys.readouterr().err


def test_each_batch_has_noise_of_its_own(tmp_path):
    model = load_generative('mmdiffrep/toy-unet')
    drawn = [
        [
            p.read_bytes()
            for p in draw_images(model, tmp_path / str(seed), 2, {}, seed, 1, steps=1, size=16)
        ]
        for seed in (0, 1)
    ]
    assert len({*drawn[0], *drawn[1]}) == 4
    with pytest.raises(ValueError, match='0 images in batches of 1'):
        draw_images(model, tmp_path / 'x', 0, {}, batch_size=1)


@pytest.mark.parametrize(
    'images, more, message',
    [
        ((), (), 'give either images or --sample N'),
        (
            ('photos',),
            ('--sample', '3', '--from', 'mmdiffrep/toy-unet'),
            'give either images or --sample N',
        ),
        ((), ('--sample', '3'), '--sample needs --from MODEL'),
        (('photos',), ('--from', 'mmdiffrep/toy-unet'), 'without --sample'),
        (('photos',), ('--keep', '0'), 'keep=0.0 does not fit'),
        (('photos',), ('--drop-certain', '2'), 'drop_certain=2 does not fit'),
        (('potatoes',), (), 'no such file or folder'),
        (('photos',), ('--device', 'quantum'), "device='quantum' cannot be used"),
    ],
)
def test_mistakes(setting, capsys, images, more, message):
    tmp_path, label = setting
    assert label(*more, images=[str(tmp_path / i) for i in images]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_a_model_that_is_never_uncertain_is_refused(setting, capsys):
    tmp_path, label = setting
    (tmp_path / 'config.py').write_text(
        CONFIG.replace("type='LabelsTestModel'", "type='LabelsTestModel', tells=False")
    )
    assert label() == 2
    assert 'LabelsTestModel does not say how uncertain it is' in capsys.readouterr().err


def test_what_cannot_be_kept_is_refused(tmp_path):
    image = tmp_path / 'cow.png'
    cv2.imwrite(str(image), np.zeros((4, 5, 3), np.uint8))
    labels = PseudoLabels(tmp_path / 'out', dict(model='m'))
    for bad in (np.full((4, 5), 255), np.full((4, 5), -1), np.zeros((1, 4, 5), int)):
        with pytest.raises(ValueError, match=r'cow\.png: labels'):
            labels.add('cow', image, bad, 0.1)
    with pytest.raises(ValueError, match='its uncertainty is nan'):
        labels.add('cow', image, np.zeros((4, 5), int), float('nan'))
    with pytest.raises(ValueError, match='1 images are not predicted, such as cow'):
        labels.export(dict(cow=image))
    labels.add('cow', image, np.zeros((5, 4), int), 0.1)
    with pytest.raises(ValueError, match=r'cow\.png is 4×5 and its labels 5×4'):
        labels.export(dict(cow=image))
    assert not (tmp_path / 'out' / 'dataset').exists()


# ---- training on it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'base', ['fpn/r18_fpn_300i_toyscenes-64x64.py', 'linear/pixels_linear_300i_toyscenes-64x64.py']
)
def test_models_of_mmseg_train_on_it(setting, base, capsys):
    if not (ROOT / 'configs').is_dir():
        pytest.skip('the tests do not run in a checkout')
    tmp_path, label = setting
    assert label() == 0
    lines = snippet(
        tmp_path / 'out' / 'dataset', dict(classes=CLASSES, palette=[[0, 0, 0], [255, 255, 255]])
    )
    assert lines in capsys.readouterr().out
    config = tmp_path / 'student.py'
    config.write_text(f"""_base_ = ['{ROOT}/configs/{base}']
model = dict(backbone=dict(init_cfg=None), decode_head=dict(num_classes=2))
train_cfg = dict(max_iters=2, val_interval=10)
default_hooks = dict(checkpoint=None, logger=dict(interval=1))
val_dataloader = val_cfg = val_evaluator = None
work_dir = '{tmp_path}/work'
{lines}""")
    cfg = Config.fromfile(config)
    if 'pixels' in base:
        cfg.model.backbone.pop('init_cfg')
    cfg.visualizer.name = cfg.experiment_name = f'student-{Path(base).stem}'
    cfg.train_dataloader.batch_size = 2
    data = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(data) == 9 and data.metainfo['classes'] == list(CLASSES)
    runner = Runner.from_cfg(cfg)
    before = runner.model.decode_head.conv_seg.weight.detach().clone()
    runner.train()
    assert runner.iter == 2 and not torch.equal(before, runner.model.decode_head.conv_seg.weight)
