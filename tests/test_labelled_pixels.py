"""LabelledPixels: every labelled pixel once an epoch; training, stopping and resuming through the runner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

pytest.importorskip('mmseg')

import mmdiffrep  # noqa: E402, F401
from mmdiffrep.datasets.labelled_pixels import LabelledPixels, shuffled  # noqa: E402
from mmdiffrep.diffusion.seeding import run_seed, seeded  # noqa: E402
from mmdiffrep.models.kept_features import backbone_mark, check_frozen  # noqa: E402
from mmdiffrep.registry import MODELS  # noqa: E402
from mmdiffrep.utils.comparison.images import innermost  # noqa: E402
from mmdiffrep.utils.comparison.measure import measure  # noqa: E402

ROOT = Path(__file__).parents[1]
SIZES = [(11, 14), (9, 20), (12, 12)]  # height, width
LOAD = [dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
PACK = [dict(type='mmseg.PackSegInputs')]


@pytest.fixture
def folder(tmp_path):
    draws = np.random.default_rng(0)
    for name in ('images', 'labels'):
        (tmp_path / name).mkdir()
    for i, (h, w) in enumerate(SIZES):
        mask = draws.integers(3, size=(h, w), dtype=np.uint8)
        mask[:, :2] = 2 if i else 1
        picture = np.stack([mask * 80 + 20] * 3, -1) + draws.integers(
            20, size=(h, w, 3), dtype=np.uint8
        )
        mask[draws.random((h, w)) < 0.2] = 255
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / 'images' / f'{i}.png')
        Image.fromarray(mask).save(tmp_path / 'labels' / f'{i}.png')
    return tmp_path


def source(folder, more=(), **kwargs):
    return dict(
        type='mmdiffrep.SegFolder', data_root=str(folder), img_suffix='.png', seg_map_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'), metainfo=dict(classes=['a', 'b', 'c']),
        pipeline=[*LOAD, *more, *PACK], **kwargs,
    )  # fmt: skip


def masks(folder):
    return [np.array(Image.open(folder / 'labels' / f'{i}.png')) for i in range(len(SIZES))]


@pytest.mark.parametrize('total', [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000])
def test_shuffled_is_a_permutation(total):
    places = np.broadcast_to(np.arange(total), (3, total))
    found = shuffled(places, total, np.array([1, 2, 2**63], np.uint64))
    assert all(sorted(row) == list(range(total)) for row in found.tolist())
    if total > 60:
        assert len({tuple(row) for row in found.tolist()}) == 3
        # as far from where they were as chance has it
        assert abs(np.corrcoef(found[0], places[0])[0, 1]) < 0.4
        assert (found == places).sum() < 15
    # any part by itself
    assert (
        shuffled(places[:, total // 2 :], total, np.array([1, 2, 2**63], np.uint64))
        == found[:, total // 2 :]
    ).all()


def test_each_member_sees_every_labelled_pixel_once_an_epoch(folder):
    data = LabelledPixels(source(folder), members=3, pixels=16, epochs=2)
    truth = {
        (i, y, x): m[y, x]
        for i, m in enumerate(masks(folder))
        for y, x in zip(*np.nonzero(m != 255))
    }
    assert data.epoch_steps == len(truth) // 16 and len(data) == 2 * data.epoch_steps
    orders = []
    for epoch in range(2):
        steps = [data[epoch * data.epoch_steps + k] for k in range(data.epoch_steps)]
        assert {step['epoch'] for step in steps} == {epoch}
        for m in range(3):
            seen = [tuple(row) for step in steps for row in step['pixels'][:, m].t().tolist()]
            assert len(set(seen)) == len(seen) == data.epoch_steps * 16
            assert all(truth[i, y, x] == label for i, y, x, label in seen)
            orders.append(tuple(seen))
    assert len(set(orders)) == 6
    # a step is the same however it is come by; another seed is another order
    again = LabelledPixels(source(folder), members=3, pixels=16, epochs=2)
    assert torch.equal(again[data.epoch_steps + 1]['pixels'], data[data.epoch_steps + 1]['pixels'])
    other = LabelledPixels(source(folder), members=3, pixels=16, epochs=2, seed=1)
    assert not torch.equal(other[0]['pixels'], data[0]['pixels'])
    with pytest.raises(IndexError):
        data[len(data)]
    few = LabelledPixels(source(folder, num_labels=1, subset_seed=0), members=1, pixels=16)
    assert len(few.sizes if few.full_init() is None else ()) == 1


def test_the_runs_seed_orders_the_pixels(folder):
    def first(run, **kwargs):
        torch.manual_seed(run)
        return LabelledPixels(source(folder), pixels=16, **kwargs)[0]['pixels']

    assert torch.equal(first(3), first(8, seed=3)) and not torch.equal(first(3), first(4))
    torch.manual_seed(5)
    with seeded(11):
        assert run_seed() == 11
    torch.rand(3)
    assert run_seed() == 5


def test_images_are_chosen_as_for_other_models(folder):
    chosen = LabelledPixels(source(folder, num_labels=3), num_labels=1, subset_seed=2)
    inner = LabelledPixels(source(folder, num_labels=1, subset_seed=2))
    assert chosen.dataset[0]['data_samples'].img_path == inner.dataset[0]['data_samples'].img_path
    assert len(chosen.dataset) == len(inner.dataset) == 1
    with pytest.raises(TypeError, match=r"\['num_label'\].*num_labels, subset_seed"):
        LabelledPixels(source(folder), num_label=1)
    with pytest.raises(ValueError, match='is built: give its config'):
        LabelledPixels(inner.dataset, num_labels=1)
    wrapped = dict(dataset=dict(dataset=source(folder), num_labels=4, type='Outer'), subset_seed=7)
    found = innermost(wrapped)
    assert (found['num_labels'], found['subset_seed'], found['type']) == (4, 7, 'mmdiffrep.SegFolder')
    assert innermost(dict(dataset=[source(folder)])) == {}


def test_balanced_classes(folder):
    rare = masks(folder)[0]
    rare[rare == 2] = 255
    rare[3, 4] = 2
    Image.fromarray(rare).save(folder / 'labels' / '0.png')
    data = LabelledPixels(source(folder, num_labels=3), members=4, pixels=32, class_balanced=True)
    drawn = torch.cat([data[k]['pixels'] for k in range(30)], -1)
    counts = drawn[3].flatten().bincount(minlength=3) / drawn[3].numel()
    assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    truth = masks(folder)
    assert all(truth[i][y, x] == label for i, y, x, label in drawn.flatten(1).t().tolist())
    assert torch.equal(
        data[7]['pixels'],
        LabelledPixels(source(folder), members=4, pixels=32, class_balanced=True)[7]['pixels'],
    )


def test_wrong_masks_are_named(folder):
    resize = [dict(type='mmcv.Resize', scale=(10, 10))]
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(folder / 'labels' / '1.png')
    for pipeline in ([], resize):
        with pytest.raises(ValueError, match=r'labels/1.png is 5×5.*9×20'):
            LabelledPixels(source(folder, pipeline)).full_init()
    Image.fromarray(np.full((9, 20), 3, np.uint8)).save(folder / 'labels' / '1.png')
    with pytest.raises(
        ValueError, match=r'1.png has the labels \[3\].*3 classes; allowed: 0 … 2, and 255'
    ):
        LabelledPixels(source(folder)).full_init()
    for i, (h, w) in enumerate(SIZES):
        Image.fromarray(np.full((h, w), 255, np.uint8)).save(folder / 'labels' / f'{i}.png')
    with pytest.raises(ValueError, match='3 images have 0 labelled pixels'):
        len(LabelledPixels(source(folder)))
    with pytest.raises(ValueError, match='pixels=1'):
        LabelledPixels(source(folder), pixels=1)
    with pytest.raises(ValueError, match='LoadAnnotations'):
        LabelledPixels({**source(folder), 'pipeline': [LOAD[0], *PACK]}).full_init()


# ---- through the runner -----------------------------------------------------------------------------------------


def config(folder, work_dir, tiny=None, **decode_head):
    cfg = Config.fromfile(ROOT / 'configs/ddpm_seg/ddpm-seg_pixels_2k_toyscenes-128x128.py')
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.model.backbone.strides = [1, 4]
    cfg.model.decode_head.update(in_channels=[3, 3], num_classes=3, members=3, **decode_head)
    if tiny is not None:
        cfg.model.backbone = dict(
            type='mmdiffrep.DiffusionBackbone', denoiser=dict(type='mmdiffrep.PixelUNet', config=tiny, random_seed=0),
            taps=['up_blocks.1', 'up_blocks.2'], timesteps=[10, 50],
        )  # fmt: skip
        cfg.model.decode_head.in_channels = [16, 8] * 2
    pipeline = source(folder)
    cfg.train_dataloader.dataset = dict(
        type='mmdiffrep.LabelledPixels', members=3, pixels=8, epochs=3, dataset=pipeline
    )
    cfg.val_dataloader.dataset = pipeline
    cfg.val_dataloader.batch_size = 1
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_cfg.update(max_iters=9, val_interval=100)
    cfg.default_hooks.checkpoint.interval = 4
    return cfg


def run(cfg, **changes):
    cfg.merge_from_dict(changes)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def assert_same(a, b, where=''):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y, where)
    else:
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b, where


def test_a_resumed_run_ends_as_one_that_ran_through(folder, tmp_path, tiny_config):
    kept = dict(custom_hooks=[dict(type='mmdiffrep.RandomStateHook'),
                              dict(type='mmdiffrep.PixelFeaturesHook', folder=str(tmp_path / 'maps'))])  # fmt: skip
    # members stop on the way
    options = dict(stop_begin=1, patience=1)
    through = run(config(folder, tmp_path / 'through', tiny_config, **options), **kept)
    assert through.model.store.computed == 3 and len(list((tmp_path / 'maps').iterdir())) == 1
    cut = run(
        config(folder, tmp_path / 'cut', tiny_config, **options),
        **kept,
        **{'train_cfg.max_iters': 4},
    )
    assert cut.model.store.computed == 0
    resumed = run(config(folder, tmp_path / 'cut', tiny_config, **options), **kept, resume=True)
    assert resumed.iter == through.iter > 4
    name = f'iter_{through.iter}.pth'
    a, b = load(tmp_path / 'through' / name), load(tmp_path / 'cut' / name)
    for key in ('state_dict', 'optimizer', 'mmdiffrep_random_state'):
        assert_same(a[key], b[key], key)
    assert any('stopping' in key for key in a['state_dict']) and not any(
        'up_blocks' in key for key in a['state_dict']
    )
    start = load(tmp_path / 'through' / 'iter_4.pth')['state_dict']
    assert any(not torch.equal(start[key], a['state_dict'][key]) for key in start)
    # training features are those of the test
    model, image = through.model.cpu().eval(), torch.rand(1, 3, *SIZES[1])
    other = MODELS.build(config(folder, tmp_path / 'x', tiny_config, **options).model).eval()
    other.load_state_dict(a['state_dict'])
    assert torch.equal(model(image), other(image)) and backbone_mark(model) == backbone_mark(other)


def test_training_ends_with_its_members(folder, tmp_path):
    runner = run(config(folder, tmp_path / 'early', stop_begin=1, patience=0))
    assert runner.model.decode_head.stopping.stopped.all() and 1 < runner.iter < 9
    assert (tmp_path / 'early' / f'iter_{runner.iter}.pth').is_file()
    assert 'mIoU' in str(runner.message_hub.log_scalars.keys())  # validated
    text = next((tmp_path / 'early').glob('*/*.log')).read_text()
    assert '3 of 3 members have stopped' in text and 'Features of 3 images' in text
    # resuming what has ended does nothing
    again = run(config(folder, tmp_path / 'early', stop_begin=1, patience=0), resume=True)
    assert again.iter == runner.iter


def test_it_learns_and_ends_with_the_epochs(folder, tmp_path):
    cfg = config(folder, tmp_path / 'learns')
    cfg.model.backbone.strides, cfg.model.decode_head.in_channels = [1], [3]
    cfg.train_dataloader.dataset.update(epochs=1)
    runner = run(cfg, **{'train_cfg.max_iters': 10**9, 'optim_wrapper.optimizer.lr': 1e-2})
    assert runner.iter == len(runner.train_dataloader.dataset) > 40
    assert runner.message_hub.get_scalar('val/mIoU').current() > 60


@pytest.mark.parametrize('changes, message', [
    (dict(trainable=True), 'trained parameters'),
    (dict(adapter=dict(type='mmdiffrep.ConcatUpsample', out_channels=8)), 'adapter=None'),
    (dict(noise=dict(kind='fresh')), 'fresh'),
])  # fmt: skip
def test_backbones_whose_features_change_are_refused(
    changes, message, folder, tmp_path, tiny_config
):
    cfg = config(folder, tmp_path / 'run', tiny_config)
    cfg.model.backbone.update(changes)
    with pytest.raises(ValueError, match=message):
        check_frozen(MODELS.build(cfg.model))


@pytest.mark.parametrize('changes, message', [
    ({'train_dataloader.dataset.members': 4}, 'members=4'),
    ({'train_dataloader.sampler': dict(type='InfiniteSampler', shuffle=True, _delete_=True)}, 'in order'),
    ({'train_dataloader.dataset.dataset.pipeline': [*LOAD, dict(type='mmseg.PhotoMetricDistortion'), *PACK]}, 'random'),
    ({'train_dataloader.dataset': 'plain'}, 'LabelledPixels'),
])  # fmt: skip
def test_what_cannot_be_kept_is_refused(changes, message, folder, tmp_path):
    cfg = config(folder, tmp_path / 'run')
    if 'train_dataloader.dataset' in changes:
        changes = {'train_dataloader.dataset': dict(source(folder), _delete_=True)}
    with pytest.raises(ValueError, match=message):
        run(cfg, **changes)


def test_the_mark_tells_backbones_apart(folder, tmp_path, tiny_config):
    def mark(**changes):
        cfg = config(folder, tmp_path, tiny_config)
        cfg.merge_from_dict({f'model.backbone.{k}': v for k, v in changes.items()})
        return backbone_mark(MODELS.build(cfg.model))

    same = [mark(), mark()]
    others = [
        mark(timesteps=[10, 51]), mark(noise=dict(kind='shared', seed=1)), mark(**{'denoiser.random_seed': 1}), mark(bgr=True),
        mark(image_mean=[0, 0, 0]), mark(windows=dict(size=16, batch=1)),
    ]  # fmt: skip
    assert same[0] == same[1] and len({same[0], *others}) == len(others) + 1


def test_a_training_step_is_measured(folder, tmp_path):
    """The features that it learns from are computed first."""
    found = measure(config(folder, tmp_path / 'cost'), training=True)
    assert not found['problems']
    # 3 members × 8 pixels, 6 features -> 128 -> 32 -> 3, two operations a weight, forward and backward but for the features
    forward = 2 * 3 * 8 * (6 * 128 + 128 * 32 + 32 * 3)
    assert found['train_flops'] == 3 * forward - 2 * 3 * 8 * 6 * 128
