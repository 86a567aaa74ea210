"""Trainings that are killed and resumed, and trainings in two processes, through tools/train.py."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdiffrep.datasets.toyscenes import write_toyscenes

ROOT = Path(__file__).parents[1]
UNET = """dict(
    sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
    down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'))
"""
DIT = """dict(
    _class_name='DiTTransformer2DModel', sample_size=16, patch_size=4, in_channels=3, out_channels=3, num_layers=2,
    num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=3)
"""
HOOKS = """
custom_hooks = [
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=0.3, gamma=2),
    dict(type='mmdiffrep.RandomStateHook'),
    dict(type='KillHook'),
    dict(type='LossFile'),
]
"""
PRETRAINING = f"""
_base_ = ['{ROOT}/configs/_base_/pretrain_runtime.py']
model = dict(type='mmdiffrep.DenoisingPretrainer', network={UNET})
data = dict(type='mmdiffrep.ImageFolder', sources=['DATA/images/train'], size=16, short_side=(16, 24))
train_dataloader = dict(batch_size=3, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(
    batch_size=2, dataset=dict(data, random=False), sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'))
val_evaluator = dict(type='RestlessMetric')
val_cfg = dict()
max_iters = 7
train_cfg = dict(max_iters=max_iters, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=3),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=3, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=2))
{HOOKS}
"""
SEGMENTATION = f"""
_base_ = ['{ROOT}/configs/_base_/default_runtime.py', '{ROOT}/configs/_base_/schedules/schedule_2k.py']
model = dict(
    type='mmseg.EncoderDecoder',
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True, size=(32, 32)),
    backbone=dict(
        type='mmdiffrep.DiffusionBackbone',
        denoiser=dict(type='mmdiffrep.PixelUNet', config={UNET}),
        taps=['down_blocks.0', 'up_blocks.0'], timesteps=50, noise=dict(kind='fresh'),
        image_mean=[127.5] * 3, image_std=[127.5] * 3,
        adapter=dict(type='mmdiffrep.ConcatUpsample', out_channels=8)),
    decode_head=dict(
        type='mmseg.FCNHead', in_channels=8, channels=8, in_index=0, num_convs=1, concat_input=False,
        dropout_ratio=0.1, num_classes=13, norm_cfg=None, align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
load = [dict(type='mmcv.LoadImageFromFile'), dict(type='mmseg.LoadAnnotations')]
augment = [
    dict(type='mmseg.RandomCrop', crop_size=(24, 24)),
    dict(type='mmcv.RandomFlip', prob=0.5),
    dict(type='mmseg.PhotoMetricDistortion'),
]
pack = [dict(type='mmseg.PackSegInputs')]
data = dict(
    type='mmseg.BaseSegDataset', data_root='DATA', img_suffix='.png', seg_map_suffix='.png',
    metainfo=dict(classes=[str(i) for i in range(13)], palette=[[i, i, i] for i in range(13)]),
    data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(data, pipeline=load + augment + pack))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(data, indices=2, pipeline=load + pack))
test_cfg = None
val_evaluator = [dict(type='mmseg.IoUMetric', iou_metrics=['mIoU']), dict(type='RestlessMetric')]
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=7)]
train_cfg = dict(max_iters=7, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2, save_best='mIoU'))
{HOOKS}
"""


class Server:
    """See train_server.py."""

    def __init__(self, folder):
        self.folder = folder
        env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT), PYTHONHASHSEED='0')
        with (folder / 'server.log').open('w') as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name('train_server.py'))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=env, cwd=folder,
            )  # fmt: skip

    def __call__(self, *requests):
        """Run trainings at once: each (config, work_dir, arguments, environment). Returns their statuses and logs."""
        lines = [
            dict(argv=[str(config), '--work-dir', str(work_dir), *args], env=env, log=f'{work_dir}.{i}.log')
            for i, (config, work_dir, args, env) in enumerate(requests)
        ]
        self.process.stdin.write(json.dumps(lines) + '\n')
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, (self.folder / 'server.log').read_text()
        return json.loads(answer), [Path(line['log']).read_text() for line in lines]

    def train(self, config, work_dir, *args, processes=1, wanted=0, **env):
        port = str(_free_port()) if processes > 1 else ''
        requests = []
        for rank in range(processes):
            ours = dict(env)
            if processes > 1:
                ours |= dict(
                    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes),
                    MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                )  # fmt: skip
            launcher = ['--launcher', 'pytorch'] if processes > 1 else []
            requests.append((config, work_dir, [*args, *launcher], ours))
        statuses, logs = self(*requests)
        # where one is killed, the other may fail for want of it
        right = statuses[0] == wanted and all((status == 0) == (wanted == 0) for status in statuses)
        assert right, '\n'.join([str(statuses), *(log[-3000:] for log in logs)])
        return logs


def _free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@pytest.fixture(scope='module')
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp('server'))
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    return write_toyscenes(tmp_path_factory.mktemp('scenes') / 'data', dict(train=6), size=(32, 32))


@pytest.fixture
def config(tmp_path, scenes):
    def write(text):
        path = tmp_path / 'config.py'
        path.write_text(text.replace('DATA', str(scenes)))
        return path

    return write


def assert_same(a, b, where=''):
    """Bit-equal, through dicts and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{where}[{i}]')
    elif torch.is_tensor(a):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b or a != a and b != b, where


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def assert_ends_alike(a, b):
    for key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'mmdiffrep_random_state'):
        assert_same(a[key], b[key], key)


def losses(work_dir, rank=0):
    return [float(line) for line in (work_dir / f'losses_{rank}.txt').read_text().split()]


RESUMED = {
    'pre-trainer': (PRETRAINING, []),
    'pre-trainer, workers': (PRETRAINING, ['train_dataloader.num_workers=2']),
    'EDM pre-trainer': (PRETRAINING, ['model.schedule._class_name=EDMSchedule']),
    'DiT pre-trainer': (PRETRAINING.replace(UNET, DIT), ['model.timestep_power=2.0']),
    'segmentor': (SEGMENTATION, []),
    'segmentor, workers, trained': (
        SEGMENTATION,
        ['train_dataloader.num_workers=2', 'model.backbone.trainable=True'],
    ),
}


@pytest.mark.parametrize('name', RESUMED)
def test_killed_and_resumed_ends_as_if_it_had_run_through(name, server, config, tmp_path):
    text, options = RESUMED[name]
    path = config(text)
    args = ['--cfg-options', *options] if options else []
    through, killed = tmp_path / 'through', tmp_path / 'killed'
    server.train(path, through, *args)
    server.train(path, killed, *args, wanted=-9, KILL_AT='6')
    assert (killed / 'last_checkpoint').read_text().endswith('iter_4.pth')
    assert not (killed / 'iter_6.pth').exists()
    copy = tmp_path / 'without'
    shutil.copytree(killed, copy)
    (copy / 'last_checkpoint').write_text(str(copy / 'iter_4.pth'))
    server.train(path, killed, '--resume', *args)
    wanted, got = load(through / 'iter_7.pth'), load(killed / 'iter_7.pth')
    assert got['meta']['iter'] == 7
    assert_ends_alike(wanted, got)
    # iteration 5 was done twice
    assert losses(through) == losses(killed)[:5] + losses(killed)[6:]
    if options:
        return
    # the test sees a resume that is not exact
    blind = config(text.replace("dict(type='mmdiffrep.RandomStateHook'),", ''))
    server.train(blind, copy, '--resume')
    assert losses(copy)[-3:] != losses(through)[-3:]


def test_two_processes_resume_exactly_too(server, config, tmp_path):
    """Each has random states of its own, and the second writes no checkpoint."""
    text = SEGMENTATION.replace('val_interval=2', 'val_interval=100')
    path = config(text + 'randomness = dict(seed=0, diff_rank_seed=True)\n')
    through, killed = tmp_path / 'through', tmp_path / 'killed'
    server.train(path, through, processes=2)
    server.train(path, killed, processes=2, wanted=-9, KILL_AT='6')
    server.train(path, killed, '--resume', processes=2)
    assert_ends_alike(load(through / 'iter_7.pth'), load(killed / 'iter_7.pth'))
    for rank in range(2):
        assert losses(through, rank) == losses(killed, rank)[:5] + losses(killed, rank)[6:]


@pytest.mark.parametrize('trainable', [False, True, "['up_blocks.0']"])
def test_two_processes_give_the_loss_of_one(trainable, server, config, tmp_path):
    text = SEGMENTATION.replace('dropout_ratio=0.1', 'dropout_ratio=0').replace("kind='fresh'", "kind='shared'")
    text = text.replace('load + augment + pack', 'load + pack').replace(', val_interval=2', ', val_interval=100')
    # AdamW would blow up the rounding of gradients that are zero in theory (a bias before a normalisation)
    text += "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, _delete_=True))\n"
    path = config(text + f'model["backbone"]["trainable"] = {trainable}\n')
    one, two = tmp_path / 'one', tmp_path / 'two'
    server.train(path, one, '--cfg-options', 'train_dataloader.batch_size=4')
    server.train(path, two, processes=2)
    mean = np.mean([losses(two, 0), losses(two, 1)], axis=0)
    assert losses(two, 0) != losses(two, 1) and len(mean) == 7
    np.testing.assert_allclose(mean, losses(one), rtol=2e-5)
    a, b = load(one / 'iter_7.pth')['state_dict'], load(two / 'iter_7.pth')['state_dict']
    assert a.keys() == b.keys()
    assert any('up_blocks.0' in key for key in a) == bool(trainable)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5, msg=key)
    start = load(one / 'iter_6.pth')['state_dict']
    assert any(not torch.equal(start[key], a[key]) for key in a)
    if trainable is True:
        moved = [key for key in a if 'up_blocks' in key and not torch.equal(start[key], a[key])]
        assert moved


@pytest.mark.parametrize('how', ['--cache', '--fsdp', '--fsdp, trained'])
def test_two_processes_end_as_one_also_with(how, server, config, tmp_path):
    """One folder of features for both; weights split over both."""
    text = SEGMENTATION.replace('dropout_ratio=0.1', 'dropout_ratio=0').replace("kind='fresh'", "kind='shared'")
    text = text.replace('load + augment + pack', 'load + pack').replace(', val_interval=2', ', val_interval=100')
    text += "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, _delete_=True), clip_grad=dict(max_norm=0.2))\n"
    path = config(text.replace("dict(type='EMAHook'", "# dict(type='EMAHook'") + f'model["backbone"]["trainable"] = {"trained" in how}\n')
    start, one, two = (tmp_path / name for name in ('start', 'one', 'two'))
    server.train(path, start, '--cfg-options', 'train_dataloader.batch_size=4', 'train_cfg.max_iters=2')
    # a runner of mmengine's draws first weights before the data set is built, the other behind it
    begin = f'load_from={start}/iter_2.pth'
    server.train(path, one, '--cfg-options', 'train_dataloader.batch_size=4', begin)
    more = ['--cache', str(tmp_path / 'features')] if how == '--cache' else ['--fsdp']
    server.train(path, two, *more, '--cfg-options', begin, processes=2)
    a, b = load(one / 'iter_7.pth')['state_dict'], load(two / 'iter_7.pth')['state_dict']
    assert a.keys() == b.keys()
    begun = load(start / 'iter_2.pth')['state_dict']
    for key in a:
        # features in half precision, or gradients summed in another order
        near = dict(rtol=1e-2, atol=2e-3) if how == '--cache' else dict(rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(a[key], b[key], **near, msg=key)
    assert max(float((a[key].float() - begun[key].float()).abs().max()) for key in a) > 0.01
    if how == '--cache':
        assert len(list((tmp_path / 'features').glob('*.shard'))) in (1, 2)


def test_two_processes_pretrain_as_one(server, config, tmp_path):
    text = PRETRAINING.replace('mmdiffrep.DenoisingPretrainer', 'HashedPretrainer').replace('val_interval=2', 'val_interval=100')
    text = text.replace("short_side=(16, 24))", 'random=False)')
    # as above, AdamW would blow up rounding
    text += "optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, _delete_=True))\n"
    path = config(text)
    one, two = tmp_path / 'one', tmp_path / 'two'
    server.train(path, one, '--cfg-options', 'train_dataloader.batch_size=4')
    server.train(path, two, '--cfg-options', 'train_dataloader.batch_size=2', processes=2)
    assert losses(two, 0) != losses(two, 1)
    np.testing.assert_allclose(np.mean([losses(two, 0), losses(two, 1)], axis=0), losses(one), rtol=2e-5)
    a, b = load(one / 'iter_7.pth')['state_dict'], load(two / 'iter_7.pth')['state_dict']
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-5, msg=key)
