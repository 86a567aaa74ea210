"""Few labels: subsets of any data set, masks that are refused, small classes, the labels of the DDPM-Seg data sets."""

import importlib.util
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mmdiffrep  # noqa: F401

pytest.importorskip('mmseg')
from mmseg.datasets import BaseSegDataset  # noqa: E402

from mmdiffrep.datasets import CheckLabels, IgnoreSmallClasses, LabelSubset, SegFolder  # noqa: E402
from mmdiffrep.datasets.ddpm_seg import SETS  # noqa: E402
from mmdiffrep.datasets.few_labels import chosen  # noqa: E402
from mmdiffrep.registry import DATASETS, TRANSFORMS  # noqa: E402

LOAD = [dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
PACK = [dict(type='mmseg.PackSegInputs')]
META = dict(classes=('a', 'b', 'c'))
CONFIGS = Path(__file__).parents[1] / 'configs' / '_base_' / 'datasets'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve images of 6×8 with masks of three classes, ignored pixels among them."""
    root = tmp_path_factory.mktemp('few')
    rng = np.random.default_rng(0)
    (root / 'images').mkdir()
    (root / 'labels').mkdir()
    for i in range(12):
        cv2.imwrite(
            str(root / 'images' / f'{i:02d}.png'), rng.integers(0, 256, (6, 8, 3), np.uint8)
        )
        cv2.imwrite(
            str(root / 'labels' / f'{i:02d}.png'),
            rng.choice(np.array([0, 1, 2, 255], np.uint8), (6, 8)),
        )
    return root


def config(root, kind='mmdiffrep.SegFolder', pipeline=(), **more):
    return dict(
        type=kind, data_root=str(root), img_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=META, pipeline=[*LOAD, *pipeline], **more,
    )  # fmt: skip


def files(data):
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


# ---- which images ---------------------------------------------------------------------------------------------


def test_a_subset_is_part_of_the_next_larger_one():
    for seed in range(3):
        sets = [set(chosen(12, n, seed)) for n in range(1, 13)]
        assert [len(s) for s in sets] == list(range(1, 13))
        assert all(a < b for a, b in zip(sets, sets[1:]))
    assert chosen(12, 4, 0) == sorted(chosen(12, 4, 0)) != chosen(12, 4, 1)
    assert chosen(3, None) == [0, 1, 2]
    # what earlier runs took
    assert chosen(12, 4, 0) == sorted(np.random.default_rng(0).permutation(12)[:4])


@pytest.mark.parametrize('wanted', [0, -1, 13])
def test_fewer_images_than_asked_for_are_refused(folder, wanted):
    message = f'num_labels={wanted} was asked of 12 labelled images; allowed: 1 to 12'
    with pytest.raises(ValueError, match=message):
        SegFolder(**{k: v for k, v in config(folder, num_labels=wanted).items() if k != 'type'})
    with pytest.raises(ValueError, match=message):
        LabelSubset(config(folder, 'mmseg.BaseSegDataset'), wanted)


@pytest.mark.parametrize('serialize', [True, False])
def test_any_data_set_gives_the_images_that_seg_folder_takes(folder, serialize):
    for n, seed in [(1, 0), (5, 0), (5, 3), (12, 1), (None, 0)]:
        plain = config(folder, 'mmseg.BaseSegDataset', PACK, serialize_data=serialize)
        wanted = DATASETS.build(config(folder, pipeline=PACK, num_labels=n, subset_seed=seed))
        subset = DATASETS.build(
            dict(type='mmdiffrep.LabelSubset', dataset=plain, num_labels=n, subset_seed=seed)
        )
        assert files(subset) == files(wanted) and len(subset) == (n or 12)
        assert torch.equal(subset[0]['inputs'], wanted[0]['inputs'])
        assert subset[0]['data_samples'].img_path == files(wanted)[0]
        assert subset.metainfo['classes'] == META['classes']


def test_a_subset_has_no_parts_of_earlier_ones(folder):
    whole = BaseSegDataset(**{k: v for k, v in config(folder, pipeline=PACK).items() if k != 'type'})
    (memo,) = BaseSegDataset._copy_without_annotation.__defaults__  # not there any more: mmengine is mended, and few_labels need not be
    memo[id(whole.pipeline)] = 'what another data set left'
    assert callable(LabelSubset(whole, 4).dataset.pipeline)


def test_a_subset_is_taken_once_late_or_after_pickling_and_leaves_the_data_set_alone(folder):
    lazy = LabelSubset(config(folder, 'mmseg.BaseSegDataset', PACK, lazy_init=True), 4)
    again = pickle.loads(pickle.dumps(lazy))
    assert len(lazy) == len(again) == 4
    lazy.full_init()
    assert files(lazy) == files(again) == files(pickle.loads(pickle.dumps(lazy)))
    assert lazy.ignore_index == 255  # the data set's own
    whole = BaseSegDataset(
        **{k: v for k, v in config(folder, pipeline=PACK).items() if k != 'type'}
    )
    assert len(LabelSubset(whole, 4)) == 4 and len(whole) == 12
    with pytest.raises(ValueError, match='derive from mmengine.BaseDataset, got list'):
        LabelSubset([1, 2], 1)


def test_a_loader_of_the_runner_takes_it(folder):
    loader = Runner.build_dataloader(
        dict(
            batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(type='mmdiffrep.LabelSubset', dataset=config(folder, 'mmseg.BaseSegDataset', PACK), num_labels=3),
        )
    )  # fmt: skip
    assert [len(batch['inputs']) for batch in loader] == [2, 1]
    assert loader.dataset.metainfo['classes'] == META['classes']


def test_pixels_are_drawn_from_a_subset_of_any_data_set(folder):
    subset = dict(
        type='mmdiffrep.LabelSubset',
        dataset=config(folder, 'mmseg.BaseSegDataset', PACK),
        num_labels=3,
    )
    data = DATASETS.build(
        dict(type='mmdiffrep.LabelledPixels', dataset=subset, members=2, pixels=4, epochs=1)
    )
    data.full_init()
    wanted = [
        cv2.imread(f.replace('images', 'labels'), cv2.IMREAD_UNCHANGED) for f in files(data.dataset)
    ]
    assert len(wanted) == 3 and len(data) == sum((m != 255).sum() for m in wanted) // 4
    image, y, x, label = data[0]['pixels'].numpy()
    assert all(
        wanted[i][v, u] == k for i, v, u, k in zip(*(a.ravel() for a in (image, y, x, label)))
    )


# ---- what is refused ------------------------------------------------------------------------------------------


def bad_mask(tmp_path, labels, image=(6, 8)):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'labels').mkdir()
    cv2.imwrite(str(tmp_path / 'images' / 'cow.png'), np.zeros((*image, 3), np.uint8))
    cv2.imwrite(str(tmp_path / 'labels' / 'cow.png'), labels)
    return tmp_path


def read(root, check=None, pipeline=(), kind='mmdiffrep.SegFolder'):
    check = check or dict(type='mmdiffrep.CheckLabels')
    return DATASETS.build(config(root, kind, [check, *pipeline, *PACK]))[0]


def test_good_masks_pass_unchanged(folder):
    data = DATASETS.build(config(folder, pipeline=[dict(type='mmdiffrep.CheckLabels'), *PACK]))
    for i in range(len(data)):
        wanted = cv2.imread(data.get_data_info(i)['seg_map_path'], cv2.IMREAD_UNCHANGED)
        assert np.array_equal(data[i]['data_samples'].gt_sem_seg.data[0].numpy(), wanted)


def test_a_mask_of_another_size_is_refused_by_name(tmp_path):
    root = bad_mask(tmp_path, np.zeros((8, 6), np.uint8))
    with pytest.raises(
        ValueError, match=r'labels/cow\.png is 8×6 and its image .*images/cow\.png 6×8'
    ):
        read(root)


def test_a_mask_is_compared_with_the_image_as_loaded(tmp_path):
    """mmseg's test pipelines resize the image before they load the mask."""
    root = bad_mask(tmp_path, np.zeros((6, 8), np.uint8))
    pipeline = [
        LOAD[0], dict(type='mmcv.Resize', scale=(16, 12)), LOAD[1], dict(type='mmdiffrep.CheckLabels'), *PACK,
    ]  # fmt: skip
    sample = DATASETS.build({**config(root), 'pipeline': pipeline})[0]
    assert sample['inputs'].shape == (3, 12, 16)


def test_labels_beyond_the_classes_are_refused_by_name(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[0, :3] = [3, 254, 255]
    root = bad_mask(tmp_path, labels)
    with pytest.raises(
        ValueError,
        match=r'labels/cow\.png has labels \[3, 254\] and the data set 3 classes; allowed: 0 to 2, and 255',
    ):
        read(root)
    with pytest.raises(ValueError, match=r'labels \[254\] and the data set 4 classes'):
        read(root, dict(type='mmdiffrep.CheckLabels', num_classes=4))
    with pytest.raises(ValueError, match=r'labels \[254, 255\].*, and 9 for pixels'):
        read(root, dict(type='mmdiffrep.CheckLabels', num_classes=4, ignore_index=9))


def test_colours_instead_of_class_numbers_are_refused(tmp_path):
    root = bad_mask(tmp_path, np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r'cow\.png has shape \(6, 8, 3\); needed: one label a pixel'
    ):
        read(root)


def test_a_data_set_that_does_not_tell_its_classes_needs_them(folder):
    check = dict(type='mmdiffrep.CheckLabels')
    with pytest.raises(ValueError, match='give num_classes'):
        read(folder, check, kind='mmseg.BaseSegDataset')
    assert read(folder, dict(check, num_classes=3), kind='mmseg.BaseSegDataset')
    with pytest.raises(ValueError, match='num_classes=0'):
        CheckLabels(0)


# ---- small classes --------------------------------------------------------------------------------------------


def slow_ignore(labels, least):
    out = labels.copy()
    for k in range(256):
        if k != 255 and 0 < (labels == k).sum() < least:
            out[labels == k] = 255
    return out


@pytest.mark.parametrize('least', [0, 1, 4, 20, 10**4])
def test_small_classes_are_ignored(least):
    rng = np.random.default_rng(least)
    for _ in range(5):
        labels = rng.choice(
            np.array([0, 1, 2, 3, 255], np.uint8), (9, 11), p=[0.6, 0.25, 0.1, 0.03, 0.02]
        )
        got = IgnoreSmallClasses(least).transform(dict(gt_seg_map=labels.copy()))['gt_seg_map']
        assert got.dtype == np.uint8 and np.array_equal(got, slow_ignore(labels, least))


def test_exactly_twenty_pixels_are_kept():
    labels = np.repeat(np.array([0, 1, 2], np.uint8), [19, 20, 21])[None]
    got = TRANSFORMS.build(dict(type='mmdiffrep.IgnoreSmallClasses'))(dict(gt_seg_map=labels))
    assert np.bincount(got['gt_seg_map'][0], minlength=256)[[0, 1, 2, 255]].tolist() == [
        0,
        20,
        21,
        19,
    ]
    with pytest.raises(ValueError, match='min_pixels=-1'):
        IgnoreSmallClasses(-1)


# ---- the paper's data sets ------------------------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    """bedroom_28 as the archive has it, with pictures of different sizes; and the labels that went in."""
    rng = np.random.default_rng(0)
    written = {}
    for split, count in (('real/train', 41), ('real/test', 20), ('ddpm', 1)):
        folder = tmp_path / 'datasets' / 'bedroom_28' / split
        (folder / 'more').mkdir(parents=True)
        for i in range(count):
            side, place = (16 if i % 2 else 24), (folder if i % 3 else folder / 'more')
            labels = rng.integers(0, 29, (side, side)).astype(
                [np.uint8, np.int64, np.float32][i % 3]
            )
            labels[0, 0] = 255
            cv2.imwrite(
                str(place / f'{i:02d}.png'), rng.integers(0, 256, (side, side, 3), np.uint8)
            )
            np.save(place / f'{i:02d}.npy', labels)
            written[str(place / f'{i:02d}')] = labels
    return tmp_path / 'datasets', written


def tool(name):
    path = Path(__file__).parents[1] / 'tools' / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'tools_{name}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_papers_files_become_images_and_masks(archive, tmp_path, capsys):
    source, written = archive
    out = tmp_path / 'out'
    assert tool('convert_ddpm_seg').main([str(source), '--out', str(out), '--size', '16']) == 0
    assert 'bedroom-28 train: 40 images of 16×16' in capsys.readouterr().out
    folders = sorted(p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_dir())
    assert folders == [
        'bedroom-28', 'bedroom-28/images', *(f'bedroom-28/images/{s}' for s in ('sampled', 'test', 'train')),
        'bedroom-28/labels', *(f'bedroom-28/labels/{s}' for s in ('sampled', 'test', 'train')),
    ]  # fmt: skip
    # the first forty in the order of their paths
    paths = sorted(k for k in written if 'real/train' in k)[:40]
    names = {
        '_'.join(Path(k).relative_to(source / 'bedroom_28/real/train').parts): written[k]
        for k in paths
    }
    assert {p.stem for p in (out / 'bedroom-28/labels/train').iterdir()} == set(names)
    for name, labels in names.items():
        got = cv2.imread(str(out / f'bedroom-28/labels/train/{name}.png'), cv2.IMREAD_UNCHANGED)
        wanted = np.where(labels == 0, 255, np.where(labels == 255, 255, labels - 1)).astype(
            np.uint8
        )
        step = len(labels) / 16  # nearest: the pixel at the whole number below
        places = [int(i * step) for i in range(16)]
        assert np.array_equal(got, wanted[np.ix_(places, places)]), name
        image = cv2.imread(str(out / f'bedroom-28/images/train/{name}.png'))
        assert image.shape == (16, 16, 3)
    dataset = Config.fromfile(CONFIGS / 'ddpm-seg_bedroom-28-256x256.py').train_dataloader.dataset
    data = DATASETS.build({**dataset, 'data_root': str(out / 'bedroom-28')})
    assert len(data) == 40 and data[0]['inputs'].shape == (3, 16, 16)


def test_wrong_files_of_the_papers_are_refused(archive, tmp_path, capsys):
    source, _ = archive
    convert = tool('convert_ddpm_seg').main
    out, train = str(tmp_path / 'out'), source / 'bedroom_28' / 'real' / 'train'

    def error(*more):
        assert convert([str(source), '--out', out, *more]) == 2
        assert not (tmp_path / 'out' / 'bedroom-28').exists()
        return capsys.readouterr().err

    good = np.load(train / '01.npy')
    for bad, message in [
        (np.full((16, 16), 29), r'01\.npy has labels \[28\] beyond the 28 classes'),
        (np.full((16, 16), 1.5), r'01\.npy holds numbers that are not whole'),
        (np.zeros((16, 12), int), r'01\.npy is 16×12 and its image 16×16'),
        (np.zeros((1, 16, 16), int), r'01\.npy holds int64 \(1, 16, 16\); needed: labels \(H, W\)'),
        (np.array([[{}]], object), r'01\.npy is no array of numbers \(.*allow_pickle=False'),
    ]:
        np.save(train / '01.npy', bad)
        assert re.search(message, error())
    np.save(train / '01.npy', good)
    (train / '04.npy').unlink()
    assert re.search(r'1 masks are not there, such as .*04\.npy', error())
    for i in (4, 5):
        (train / f'{i:02d}.png').unlink()
    assert 'has 39 images, the set 40' in error()
    assert 'cat_15/real/train: no such folder' in error('--sets', 'cat-15')
    assert convert([str(tmp_path)]) == 2 and 'has none of' in capsys.readouterr().err


def test_what_is_there_is_not_replaced_unasked(archive, tmp_path, capsys):
    source, _ = archive
    argv = [str(source), '--out', str(tmp_path / 'out'), '--size', '16']
    (tmp_path / 'out' / 'bedroom-28').mkdir(parents=True)
    (tmp_path / 'out' / 'bedroom-28' / 'mine.txt').touch()
    convert = tool('convert_ddpm_seg').main
    assert convert(argv) == 2 and 'is there already: give --overwrite' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'bedroom-28' / 'mine.txt').exists()
    assert convert([*argv, '--overwrite']) == 0
    assert not (tmp_path / 'out' / 'bedroom-28' / 'mine.txt').exists()


@pytest.mark.skipif(not CONFIGS.is_dir(), reason='the tests do not run in a checkout')
def test_the_configs_say_what_the_converter_writes():
    files = sorted(CONFIGS.glob('ddpm-seg_*-256x256.py'))
    assert [path.stem[len('ddpm-seg_') : -len('-256x256')] for path in files] == sorted(SETS)
    for path in files:
        config = Config.fromfile(path)
        about = SETS[Path(config.data_root).name]
        train, test = config.train_dataloader.dataset, config.test_dataloader.dataset
        assert f'ddpm-seg_{Path(config.data_root).name}-256x256' == path.stem
        assert (config.num_classes, train.num_labels, test.num_labels) == (
            about.classes,
            about.train,
            about.test,
        )
        assert (
            len(set(config.class_names))
            == about.classes
            == len(train.metainfo.classes)
            == len(test.metainfo.classes)
        )
        assert config.val_dataloader == config.test_dataloader
        assert [metric['type'] for metric in config.test_evaluator] == [
            'mmseg.IoUMetric',
            'mmdiffrep.DDPMSegIoU',
        ]
