"""Watching a pre-training: sample grids, losses by timestep, a linear probe; tools/sample.py; class folders."""

import shutil
import zipfile

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmdiffrep.datasets import ImageFolder
from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.sampling import sample
from mmdiffrep.engine.hooks import LinearProbeHook, SampleHook
from mmdiffrep.evaluation import TimestepLoss
from mmdiffrep.evaluation.linear_probe import linear_probe, pooled_features
from mmdiffrep.visualization.samples import sample_grid, to_pictures

pytestmark = pytest.mark.usefixtures('all_on_accelerator')
UNET = dict(
    sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'),
)  # fmt: skip
TAPS = ['mid_block', 'up_blocks.0.resnets.1']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two classes, dark and light, eight images each."""
    folder = tmp_path_factory.mktemp('classes')
    rng = np.random.default_rng(0)
    for name, low in (('dark', 0), ('light', 156)):
        (folder / name).mkdir()
        for i in range(8):
            cv2.imwrite(str(folder / name / f'{i}.png'), rng.integers(low, low + 100, (8, 8, 3), dtype=np.uint8))
    return folder


def dataset(folder, **options):
    return dict(type='mmdiffrep.ImageFolder', sources=str(folder), size=8, **options)


@pytest.fixture(scope='module')
def run(folder, tmp_path_factory):
    """A short training with everything switched on."""
    work_dir = tmp_path_factory.mktemp('run')
    labelled = dict(labels=True, random=False)
    cfg = Config(dict(
        model=dict(type='mmdiffrep.DenoisingPretrainer', network=UNET, num_classes=2),
        train_dataloader=dict(
            batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=dict(type='default_collate'), dataset=dataset(folder, labels=True),
        ),
        val_dataloader=dict(
            batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'), dataset=dataset(folder, labels=True, random=False),
        ),
        val_evaluator=dict(type='mmdiffrep.TimestepLoss', bands=(0, 500, 1000)), val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-3)),
        train_cfg=dict(by_epoch=False, max_iters=4, val_interval=2),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)),
        custom_hooks=[
            dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.3, gamma=2),
            dict(type='mmdiffrep.SampleHook', interval=2, count=2, steps=2, class_ids=[0, 1], guidance_scale=2.0),
            dict(
                type='mmdiffrep.LinearProbeHook', train=dataset(folder, first=0, last=5, **labelled),
                val=dataset(folder, first=5, **labelled), taps=TAPS, timesteps=[10, 100], interval=2, lr=1e-1,
            ),
            dict(type='mmdiffrep.SaveDiffusersHook'),
        ],
        visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')]),
        default_scope='mmengine', log_level='ERROR', randomness=dict(seed=0), work_dir=str(work_dir), experiment_name='test-watching',
    ))  # fmt: skip
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner, work_dir


def hook(runner, kind):
    return next(h for h in runner.hooks if isinstance(h, kind))


def scalars(work_dir):
    import json

    (file,) = work_dir.glob('*/vis_data/scalars.json')
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_sample_grids_are_drawn_from_the_average(run):
    runner, work_dir = run
    files = sorted(work_dir.glob('*/vis_data/vis_image/samples_*.png'))
    assert [f.stem for f in files] == ['samples_2', 'samples_4']
    ema = next(h for h in runner.hooks if type(h).__name__ == 'EMAHook').ema_model.module.model.eval()
    rows = [
        sample(
            ema, 2, 2, condition=ema.condition(2, torch.full((2,), c)), guidance_scale=2.0,
            generator=torch.Generator().manual_seed(0),
        )
        for c in (0, 1)
    ]  # fmt: skip
    wanted = sample_grid(torch.cat(rows), 2, ['class 0', 'class 1'])
    got = cv2.imread(str(files[1]))[..., ::-1]
    assert np.abs(got.astype(int) - wanted.astype(int)).max() <= 1


def test_watching_draws_no_random_numbers(run, monkeypatch):
    runner, _ = run
    runner.model.train()
    seeded = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeded.append)
    state = torch.get_rng_state()
    hook(runner, SampleHook).draw(runner, 7)
    hook(runner, LinearProbeHook).probe(runner, 7)
    assert torch.equal(state, torch.get_rng_state()) and not seeded
    assert runner.model.model.network.training


def test_losses_by_timestep_by_hand(run):
    metric = TimestepLoss(bands=(0, 100, 500, 1000))
    metric.process(None, [dict(t=torch.tensor(t), loss=torch.tensor(x)) for t, x in ((0, 4.0), (99, 2.0), (100, 1.0), (999, 0.5))])
    assert metric.compute_metrics(metric.results) == {'loss': 1.875, 'loss_0-100': 3.0, 'loss_100-500': 1.0, 'loss_500-1000': 0.5}
    logged = [line for line in scalars(run[1]) if 'timestep/loss' in line]
    assert len(logged) == 2 and all(0 < line['timestep/loss'] < 5 for line in logged)
    with pytest.raises(ValueError, match=r'bands=\[5, 1\] do not fit'):
        TimestepLoss(bands=(5, 1))


def test_probe_reads_what_a_plain_hook_reads(run, folder):
    runner, work_dir = run
    model = runner.model.model.cpu()
    images = torch.stack([ImageFolder(str(folder), 8, random=False)[i]['inputs'] for i in range(3)]).flip(1) / 127.5 - 1
    torch.manual_seed(4)
    got = pooled_features(model, images, 100, TAPS)
    torch.manual_seed(4)
    noise = torch.randn(images.shape)
    seen = []
    handle = model.network.up_blocks[0].resnets[1].register_forward_hook(lambda m, a, out: seen.append(out))
    t = torch.full((3,), 100)
    with torch.no_grad():
        model.network.eval()(model.schedule.add_noise(images, noise, t), t, class_labels=torch.full((3,), 2))
    handle.remove()
    model.network.train()
    torch.testing.assert_close(got[TAPS[1]], seen[0].mean((2, 3)), rtol=1e-5, atol=1e-6)
    # dark and light are told apart by any network
    logged = [line for line in scalars(work_dir) if 'probe/mid_block@10' in line]
    assert [line['step'] for line in logged][:2] == [2, 4]
    assert logged[-1]['probe/mid_block@10'] == 100 and 'probe/up_blocks.0.resnets.1@100' in logged[-1]


def test_linear_probe_finds_a_linear_rule_and_no_rule_in_noise():
    generator = torch.Generator().manual_seed(0)
    x, x_val = torch.randn(600, 8, generator=generator), torch.randn(300, 8, generator=generator)
    rule = torch.randn(8, 3, generator=generator)
    y, y_val = (x @ rule).argmax(1), (x_val @ rule).argmax(1)
    assert linear_probe(1e3 * x + 5, y, 1e3 * x_val + 5, y_val, epochs=30, lr=1e-2) > 93
    assert linear_probe(x, y[torch.randperm(600, generator=generator)], x_val, y_val) < 50
    with pytest.raises(ValueError, match='training features .* do not fit'):
        linear_probe(x, y[:5], x_val, y_val)


def test_probe_refuses_before_training(folder, run, tmp_path):
    with pytest.raises(ValueError, match='give at least one of each'):
        LinearProbeHook({}, {}, taps=[])
    runner, _ = run
    with pytest.raises(ValueError, match="'up_blocks.7'"):
        LinearProbeHook(dataset(folder), dataset(folder), ['up_blocks.7']).before_train(runner)
    with pytest.raises(ValueError, match='needs labelled images: set labels=True'):
        LinearProbeHook(dataset(folder), dataset(folder), TAPS).before_train(runner)
    with pytest.raises(ValueError, match=r'timesteps \[1000.*outside the schedule; allowed: whole numbers from 0 to 999'):
        LinearProbeHook(dataset(folder), dataset(folder), TAPS, timesteps=[1000]).before_train(runner)
    shutil.copytree(folder / 'dark', tmp_path / 'one' / 'dark')
    one = dataset(tmp_path / 'one', labels=True)
    with pytest.raises(ValueError, match=r"trains on classes \['dark', 'light'\] and is scored on .*: give the same folders"):
        LinearProbeHook(dataset(folder, labels=True), one, TAPS).before_train(runner)


@pytest.mark.parametrize('options, message', [
    (dict(sampler='heun'), "sampler='heun' does not fit this schedule"),
    (dict(steps=1001), 'steps=1001 does not fit; allowed: 1 to 1000'),
    (dict(size=9), 'images of 9×9 cannot be drawn; allowed: multiples of 2'),
    (dict(prompts=['a cat']), 'takes no text'),
    (dict(class_ids=[0, 3]), r'class ids \[0, 3\] are unknown; allowed: 0 to 2'),
])  # fmt: skip
def test_samples_are_refused_before_training(run, options, message):
    with pytest.raises(ValueError, match=message):
        SampleHook(**options).before_train(run[0])


def test_hooks_refuse_what_draws_no_images():
    from types import SimpleNamespace

    from mmdiffrep.models.pretrainers import AutoencoderPretrainer

    vae = AutoencoderPretrainer(dict(block_out_channels=(8,), norm_num_groups=4))
    with pytest.raises(ValueError, match='AutoencoderPretrainer draws no images .* Leave it out'):
        SampleHook().before_train(SimpleNamespace(hooks=[], model=vae))


def test_what_is_no_map_is_not_pooled(run):
    model = run[0].model.model.cpu()
    with pytest.raises(ValueError, match=r"taps \['time_embedding \(2, 32\)'\] are no maps"):
        pooled_features(model, torch.zeros(2, 3, 8, 8), 10, ['time_embedding'])


def test_at_the_end_only(run):
    """An interval below 1 means the end of training."""
    runner, drawn = run[0], []
    hook_ = SampleHook(interval=-1)
    hook_.draw = lambda runner, step: drawn.append(step)
    hook_.after_train_iter(runner)
    hook_.after_train(runner)
    assert drawn == [4]


def test_the_card_tells_the_data(run, folder):
    card = (run[1] / 'diffusers' / 'README.md').read_text()
    assert f'- data: {folder}' in card and '- images: 16, size 8' in card and 'told 2 classes' in card


# ---- class folders -----------------------------------------------------------------------------------------------------


def test_labels_are_the_folders_names(folder, tmp_path):
    data = ImageFolder(str(folder), 8, labels=True, random=False)
    assert data.classes == ['dark', 'light'] and [data[i]['label'] for i in (0, 7, 8, 15)] == [0, 0, 1, 1]
    first, last = (ImageFolder(str(folder), 8, labels=True, random=False, **part) for part in (dict(last=5), dict(first=5)))
    assert [len(first), len(last)] == [10, 6]
    assert {i[1] for i in first.items}.isdisjoint(i[1] for i in last.items)
    assert [last[i]['label'] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        for file in sorted(folder.rglob('*.png')):
            archive.write(file, file.relative_to(folder))
    zipped = ImageFolder(str(tmp_path / 'a.zip'), 8, labels=True, random=False)
    assert all(torch.equal(zipped[i]['inputs'], data[i]['inputs']) for i in range(16)) and zipped.classes == data.classes
    with pytest.raises(ValueError, match='8 images lie in no class folder, for example .*0.png. Allowed: FOLDER/CLASS/IMAGE'):
        ImageFolder(str(folder / 'dark'), 8, labels=True)
    assert 'label' not in ImageFolder(str(folder), 8)[0]


# ---- tools/sample.py ---------------------------------------------------------------------------------------------------


def tool_main(name):
    import importlib.util
    from pathlib import Path

    spec = importlib.util.spec_from_file_location(f'{name}_tool', Path(__file__).parents[1] / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def tool():
    return tool_main('sample')


def test_tool_draws_from_a_folder_and_from_a_checkpoint(run, tool, tmp_path, capsys):
    runner, work_dir = run
    config = tmp_path / 'config.py'
    config.write_text(f'model = dict(type="mmdiffrep.DenoisingPretrainer", network={UNET}, num_classes=2)\n')
    common = ['--count', '2', '--steps', '3', '--class-ids', '1', '0', '--seed', '5']
    sheets = []
    for what in ([str(work_dir / 'diffusers')], [str(config), str(work_dir / 'iter_4.pth')]):
        out = tmp_path / f'{len(sheets)}.png'
        assert tool([*what, '--out', str(out), '--each', str(tmp_path / 'each'), *common]) == 0
        sheets.append(cv2.imread(str(out)))
    assert np.array_equal(*sheets)
    assert '4 images of 8×8' in capsys.readouterr().out
    model = GenerativeModel.load(work_dir / 'diffusers').eval()
    wanted = sample(model, 2, 3, condition=model.condition(2, torch.ones(2).long()), generator=torch.Generator().manual_seed(5))
    each = [cv2.imread(str(tmp_path / 'each' / f'0000{i}.png'))[..., ::-1] for i in range(4)]
    assert np.array_equal(each[1], to_pictures(wanted)[1])


@pytest.mark.parametrize('arguments, message', [
    (['mmdiffrep/toy-nothing'], 'no such model ships'),
    (['configs/pretrain/edm_toy-unet_2k_toyscenes-32x32.py'], 'is a config: give the checkpoint too'),
    (['mmdiffrep/toy-unet', 'x.pth'], 'is no config file'),
    (['mmdiffrep/toy-unet', '--prompts', 'a cat'], 'takes no text'),
    (['mmdiffrep/toy-unet', '--size', '30'], 'images of 30×30 cannot be drawn; allowed: multiples of 8'),
    (['mmdiffrep/toy-unet', '--steps', '2000'], 'steps=2000 does not fit; allowed: 1 to 1000'),
    (['mmdiffrep/toy-unet', '--sampler', 'heun'], "sampler='heun' does not fit this schedule; allowed: ['ddim'"),
])  # fmt: skip
def test_tool_says_what_is_wrong(tool, arguments, message, tmp_path, capsys):
    assert tool([*arguments, '--out', str(tmp_path / 'x.png'), '--device', 'cpu']) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
