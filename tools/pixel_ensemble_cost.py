#!/usr/bin/env python
"""What DDPM-Seg's ensemble costs: time beside a loop over its members, and memory at full size.

    python tools/pixel_ensemble_cost.py training                    # 10 members × 64 pixels, several numbers of channels
    python tools/pixel_ensemble_cost.py memory --images 50          # features and training at 256² with a full-size ADM

``training`` counts processor time on one thread, so that other work on the machine hardly counts; seconds on an accelerator. Both ways get the
same pixels and take the same steps of Adam; the loop is torch.nn's, a network and an optimizer a member.

``memory`` trains through the runner what ``configs/ddpm_seg/ddpm-seg_adm-256_100e_*.py`` describes, on random images and weights: the first number
is what the process takes beside the network's weights (libraries, features in memory, training), and how much of it are pages of files, which
the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.hooks import Hook
from torch import nn

import mmdiffrep  # noqa: F401
from mmdiffrep.models.ensemble import PixelEnsemble
from mmdiffrep.utils import cli
from mmdiffrep.utils.taps import format_table

CONFIG = 'configs/ddpm_seg/ddpm-seg_adm-256_100e_bedroom-28-256x256.py'
STATUS = Path('/proc/self/status')
GIB = 2**30


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('what', choices=['training', 'memory'])
    parser.add_argument(
        '--channels',
        type=int,
        nargs='+',
        default=[8448, 864, 3],
        help='training: features of a pixel',
    )
    parser.add_argument('--members', type=int, default=10)
    parser.add_argument('--pixels', type=int, default=64)
    parser.add_argument('--classes', type=int, default=28)
    parser.add_argument('--steps', type=int, default=20, help='timed steps')
    parser.add_argument(
        '--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='training: where'
    )
    parser.add_argument('--images', type=int, default=50, help='memory: training images')
    parser.add_argument(
        '--looked-at',
        type=int,
        help='memory: the network looks at so many of them; the others get the maps of the last one, kept as their own. Default: all',
    )
    parser.add_argument('--size', type=int, default=256, help='memory: their side')
    parser.add_argument('--timesteps', type=float, nargs='+', help="memory: default: the config's")
    parser.add_argument(
        '--folder', help='memory: where features are kept; default: a temporary folder'
    )
    parser.add_argument(
        '--config', default=CONFIG, help='memory: with a PixelUNet of the full-size ADM'
    )
    return parser


# ---- training ---------------------------------------------------------------------------------------------------


def separate(channels: int, hidden: list[int], classes: int) -> nn.Sequential:
    a, b = hidden
    return nn.Sequential(
        nn.Linear(channels, a),
        nn.ReLU(),
        nn.BatchNorm1d(a),
        nn.Linear(a, b),
        nn.ReLU(),
        nn.BatchNorm1d(b),
        nn.Linear(b, classes),
    )


def per_step(step: Callable[[], None], steps: int, device: str) -> float:
    """Milliseconds: the least of five rounds, so that what disturbs is left out."""
    clock = time.process_time if device == 'cpu' else time.perf_counter
    step(), step()  # the first ones allocate
    rounds = []
    for _ in range(5):
        begin = clock()
        for _ in range(max(1, steps // 5)):
            step()
        if device != 'cpu':
            torch.cuda.synchronize()
        rounds.append((clock() - begin) / max(1, steps // 5))
    return 1000 * min(rounds)


def batched_and_loop(args: argparse.Namespace, channels: int) -> tuple[float, dict[str, float]]:
    """ms a step of the ensemble, and of the loop with torch's default Adam and with its fused one."""
    # as many maps as the paper has
    parts = [len(part) for part in np.array_split(np.arange(channels), min(15, channels))]
    head = PixelEnsemble(parts, args.classes, args.members).to(args.device).train()
    x = torch.randn(args.members, args.pixels, channels, device=args.device)
    y = torch.randint(args.classes, (args.members, args.pixels), device=args.device)
    adam = torch.optim.Adam(head.parameters(), 1e-3, fused=True)

    def batched() -> None:
        loss = head.loss(x, y)['loss_ce']
        adam.zero_grad()
        loss.backward()
        adam.step()

    ours = per_step(batched, args.steps, args.device)
    loops = {}
    for name, options in {'Adam': {}, 'fused Adam': dict(fused=True)}.items():
        nets = [
            separate(channels, head.mlps.widths[1:-1], args.classes).to(args.device)
            for _ in range(args.members)
        ]
        adams = [torch.optim.Adam(net.parameters(), 1e-3, **options) for net in nets]

        def loop(nets: list = nets, adams: list = adams) -> None:
            for m, (net, own) in enumerate(zip(nets, adams)):
                loss = F.cross_entropy(net(x[m]), y[m])
                own.zero_grad()
                loss.backward()
                own.step()

        loops[name] = per_step(loop, args.steps, args.device)
    return ours, loops


def training(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rows = []
    for channels in args.channels:
        ours, loops = batched_and_loop(args, channels)
        rows.append(
            [str(channels), f'{ours:.1f}', *(f'{v:.1f} ({v / ours:.1f}×)' for v in loops.values())]
        )
    print(
        f'{args.members} members × {args.pixels} pixels, {args.classes} classes, ms a step on {args.device}, torch {torch.__version__}'
    )
    print(format_table(['channels', 'batched', 'loop, Adam', 'loop, fused Adam'], rows))


# ---- memory -----------------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """The largest resident memory since :meth:`phase` was called: all of it, and what is not pages of files (bytes)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most: dict[str, tuple[int, int]] = {}
        self.name_of_phase = 'start'
        self.start()

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.02)

    def look(self) -> None:
        lines = dict(line.split(':', 1) for line in STATUS.read_text().splitlines())
        whole, own = (int(lines[key].split()[0]) * 1024 for key in ('VmRSS', 'RssAnon'))
        before = self.most.get(self.name_of_phase, (0, 0))
        self.most[self.name_of_phase] = (max(whole, before[0]), max(own, before[1]))

    def phase(self, name: str) -> None:
        self.name_of_phase = name
        self.look()


class Phases(Hook):
    """Tells the watch where the run is."""

    def __init__(self, watch: Watch, name: str, priority: str) -> None:
        self.watch, self.name, self.priority, self.at = watch, name, priority, 0.0

    def before_train(self, runner: Any) -> None:
        self.at = time.perf_counter()
        self.watch.phase(self.name)


def write_images(folder: Path, args: argparse.Namespace) -> None:
    from PIL import Image

    draws = np.random.default_rng(0)
    for i in range(args.images):
        for name, shape, most in (
            ('images', (args.size, args.size, 3), 256),
            ('labels', (args.size, args.size), args.classes),
        ):
            path = folder / name / 'train' / f'{i:03}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(most, size=shape, dtype=np.uint8)).save(path)


def memory(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if not STATUS.exists():
        raise ValueError('memory is read from /proc/self/status, which is there on Linux only')
    if min(args.images, args.steps, args.size, args.looked_at or 1) < 1:
        raise ValueError(
            f'--images {args.images} --steps {args.steps} --size {args.size} do not fit; allowed: at least 1'
        )
    config = Config.fromfile(cli.existing_config(args.config))
    with tempfile.TemporaryDirectory() as temporary:
        write_images(Path(temporary) / 'data', args)
        config.work_dir = str(Path(temporary) / 'work_dir')
        config.model.backbone.denoiser = dict(
            type='mmdiffrep.PixelUNet', config='adm-256', random_seed=0
        )
        if args.timesteps:
            channels = config.model.decode_head.in_channels
            each = len(channels) // len(config.model.backbone.timesteps)
            config.model.backbone.timesteps = args.timesteps
            config.model.decode_head.in_channels = channels[:each] * len(args.timesteps)
        config.train_dataloader.dataset.dataset.update(
            data_root=f'{temporary}/data', num_labels=None
        )
        folder = args.folder or f'{temporary}/features'
        config.custom_hooks = [dict(type='mmdiffrep.PixelFeaturesHook', folder=folder)]
        config.train_cfg = dict(
            type='IterBasedTrainLoop', max_iters=args.steps, val_interval=args.steps + 1
        )
        for key in (
            'val_dataloader',
            'val_cfg',
            'val_evaluator',
            'test_dataloader',
            'test_cfg',
            'test_evaluator',
        ):
            config[key] = None
        config.default_hooks.checkpoint = None
        measured(args, cli.build_runner(config))


def look_at(model: Any, count: int) -> list[float]:
    """From image number ``count`` on the model gets the last maps again. Returns what will hold the seconds of each look."""
    extract, seconds, last = model.extract_feat, [], []

    def some(inputs: Any) -> Any:
        if len(seconds) < count:
            begin = time.perf_counter()
            last[:] = [extract(inputs)]
            seconds.append(time.perf_counter() - begin)
        return last[0]

    model.extract_feat = some
    return seconds


def measured(args: argparse.Namespace, runner: Any) -> None:
    watch = Watch()
    looks = look_at(runner.model, args.looked_at or args.images)
    features, train = Phases(watch, 'features', 'HIGHEST'), Phases(watch, 'training', 'LOWEST')
    runner.register_hook(features, 'HIGHEST')
    runner.register_hook(train, 'LOWEST')
    runner.train()
    end = time.perf_counter()
    model = runner.model
    network = sum(
        p.numel() * p.element_size() for p in model.backbone.denoiser.network.parameters()
    )
    channels, side = sum(model.decode_head.in_channels), args.size
    rows = []
    for name in ('features', 'training'):
        whole, own = watch.most[name]
        rows.append([name, f'{(whole - network) / GIB:.2f}', f'{(own - network) / GIB:.2f}'])
    naive = args.images * channels * side**2 * 4 / GIB
    print(
        f'{args.images} images of {side}×{side}, {channels} channels; the network is {network / GIB:.2f} GiB of weights'
    )
    print(format_table(['peak beside the network, GiB', 'all', 'without pages of files'], rows))
    print(
        f'kept: {model.store.bytes / GIB:.2f} GiB in half precision on disk; all pixels of all maps in single precision: {naive:.2f} GiB'
    )
    print(
        f'looked at {len(looks)} images: {len(looks) / sum(looks):.4f} images/s ({sum(looks):.1f} s); '
        f'training: {args.steps / (end - train.at):.2f} steps/s'
    )


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: memory(args) if args.what == 'memory' else training(args))


if __name__ == '__main__':
    raise SystemExit(main())
