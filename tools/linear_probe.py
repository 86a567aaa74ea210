#!/usr/bin/env python
"""A linear layer on pooled frozen features, for every timestep and block: a table, a CSV and a heat map.

After DDAE (Xiang et al., ICCV 2023); features are computed once and standardised, so without augmentation and with one draw of the noise.
Beside the pre-trained network: the same one with random weights, and the pixels.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.utils import track_iter_progress
from torch import Tensor
from torch.utils.data import DataLoader

import mmdiffrep  # noqa: F401
from mmdiffrep.datasets import ImageFolder
from mmdiffrep.diffusion.aliases import adm_blocks
from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.networks import build_network
from mmdiffrep.evaluation.linear_probe import linear_probe, pooled_features
from mmdiffrep.utils import cli
from mmdiffrep.utils.taps import format_table
from mmdiffrep.visualization import write_picture
from mmdiffrep.visualization.heatmap import heatmap

BATCH = 100


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='short name, diffusers folder or hub id')
    parser.add_argument('images', help='folder or zip file of CLASS/IMAGE')
    parser.add_argument('--train', type=int, default=400, help='images a class to train on; default 400')
    parser.add_argument('--val', type=int, default=100, help='images a class to score, the next ones; default 100')
    parser.add_argument('--size', type=int, help="of the images; default: the network's own")
    parser.add_argument('--timesteps', type=float, nargs='+', default=[0, 10, 50, 100], help='for EDM: sigma')
    parser.add_argument('--taps', nargs='+', help='default: middle block and every block of the way up')
    parser.add_argument('--seeds', type=int, default=1, help='of noise and linear layer; the mean is reported')
    parser.add_argument('--epochs', type=int, default=15)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--out', default='work_dirs/linear_probe', help='folder')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def default_taps(model: GenerativeModel) -> list[str]:
    """The middle, and each ResBlock (with its attention) of the way up: DDAE's ``out_k``."""
    if model.kind == 'DiTTransformer2DModel':
        return [f'transformer_blocks.{i}' for i in range(len(model.network.transformer_blocks))]
    if model.kind == 'UNet2DConditionModel':
        return ['mid_block', *(f'up_blocks.{i}' for i in range(len(model.network.up_blocks)))]
    blocks = adm_blocks(model.network.config)
    return ['mid_block', *(block.before_resampling for block in blocks if block.name.startswith('output_blocks'))]


def read(data: ImageFolder) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) RGB in [-1, 1], and labels (N,)."""
    batches = list(DataLoader(data, BATCH))
    images = torch.cat([batch['inputs'] for batch in batches]).flip(1)
    return images.float() / 127.5 - 1, torch.cat([batch['label'] for batch in batches])


def features(model: GenerativeModel, images: Tensor, t: float, taps: Sequence[str], device: str) -> dict[str, Tensor]:
    found = [pooled_features(model, part.to(device), t, taps) for part in images.split(BATCH)]
    return {tap: torch.cat([one[tap].cpu() for one in found]) for tap in taps}


def score(args: argparse.Namespace) -> Path:
    model = GenerativeModel.load(args.model).to(args.device).eval()
    taps = args.taps or default_taps(model)
    size = args.size or model.sample_shape()[1] * model.stride
    for t in args.timesteps:
        model.schedule.check_timesteps(torch.tensor([t]))
    if args.train < 1 or args.val < 1:
        raise ValueError(f'--train {args.train} --val {args.val} do not fit; allowed: at least 1 image a class')
    common = dict(sources=args.images, size=size, labels=True, random=False, cache=False)
    train = ImageFolder(last=args.train, **common)
    val = ImageFolder(first=args.train, last=args.train + args.val, **common)
    if train.classes != val.classes:
        raise ValueError(f'{args.images}: some classes have no more than {args.train} images; take a smaller --train')
    (x, y), (x_val, y_val) = read(train), read(val)
    print(f'{len(x)} images to train on, {len(x_val)} to score, {len(train.classes)} classes, {size}×{size}', flush=True)
    kind, untrained = build_network({'_class_name': model.kind, **_plain(model.network.config)}, None, 0)
    networks = {'pre-trained': model.network, 'untrained': untrained.to(args.device)}
    tables = {name: np.full((len(taps), len(args.timesteps), args.seeds), np.nan) for name in networks}
    start = time.perf_counter()
    cells = [(seed, k, name) for seed in range(args.seeds) for k in range(len(args.timesteps)) for name in networks]
    for seed, k, name in track_iter_progress(cells, file=sys.stderr):
        model.network = networks[name]
        torch.manual_seed(seed)
        f, f_val = (features(model, images, args.timesteps[k], taps, args.device) for images in (x, x_val))
        for row, tap in enumerate(taps):
            tables[name][row, k, seed] = linear_probe(f[tap], y, f_val[tap], y_val, epochs=args.epochs, lr=args.lr, seed=seed)
    # the same number of values as a block of middling width has
    small = [torch.nn.functional.adaptive_avg_pool2d(images, 8).flatten(1) for images in (x, x_val)]
    pixels = [linear_probe(small[0], y, small[1], y_val, epochs=args.epochs, lr=args.lr, seed=seed) for seed in range(args.seeds)]
    return _write(args, taps, tables, pixels, time.perf_counter() - start, len(train.classes))


def _plain(config: dict) -> dict:
    return {key: value for key, value in config.items() if not key.startswith('_')}


def _write(args: argparse.Namespace, taps: list[str], tables: dict, pixels: list[float], seconds: float, classes: int) -> Path:
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    times = [f'{t:g}' for t in args.timesteps]
    with open(out / 'probe.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['network', 'tap', 'timestep', 'seed', 'accuracy'])
        for name, table in tables.items():
            for (row, k, seed), value in np.ndenumerate(table):
                writer.writerow([name, taps[row], times[k], seed, f'{value:.3f}'])
        writer.writerows(['pixels 8×8', '', '', seed, f'{value:.3f}'] for seed, value in enumerate(pixels))
    lines = []

    def spread(mean: float, deviation: float, digits: int = 1) -> str:
        return f'{mean:.{digits}f} ± {deviation:.{digits}f}' if args.seeds > 1 else f'{mean:.{digits}f}'

    for name, table in tables.items():
        mean, deviation = table.mean(2), table.std(2)
        rows = [[tap, *map(spread, mean[r], deviation[r])] for r, tap in enumerate(taps)]
        best = np.unravel_index(mean.argmax(), mean.shape)
        lines += [f'{name}: best {mean.max():.2f} at {taps[best[0]]}, t = {times[best[1]]}', format_table(['tap', *times], rows), '']
    lines.append(f'pixels, averaged to 8×8: {spread(np.mean(pixels), np.std(pixels), 2)}; chance {100 / classes:.1f}')
    text = '\n'.join(lines)
    (out / 'probe.txt').write_text(text + '\n', encoding='utf-8')
    (out / 'probe.json').write_text(json.dumps({**vars(args), 'seconds': round(seconds)}, indent=2) + '\n', encoding='utf-8')
    panels = [(name, table.mean(2)) for name, table in tables.items()]
    write_picture(out / 'probe.png', heatmap(panels, times, taps, f'Linear probe, accuracy in percent (pixels {np.mean(pixels):.1f})', 't'))
    print(f'\n{text}\n\n{out}/probe.png, .csv, .txt, .json ({seconds:.0f} s)')
    return out


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: score(args))


if __name__ == '__main__':
    raise SystemExit(main())
