#!/usr/bin/env python
"""Which timestep, which block? Every timestep × every tap of a config's diffusion network, scored on the config's data.

    python tools/sweep.py configs/ddae/ddae_cifar-unet_linear_15e_cifar10-32x32.py --train 5000 --val 2000 --untrained
    python tools/sweep.py configs/fpn/diffusion_natural-unet_fpn_300i_camvid-180x240.py --train 20 --val 50
    python tools/sweep.py configs/dift/dift_toy-unet_toyscenes-128x128.py --val 100

All taps are read in one look a timestep. A classification config is scored by a linear layer on pooled features (or --probe knn, logistic), one
of mmseg by a linear layer at drawn pixels, and one of configs/dift (or --probe correspondence) by points found in pairs of images. Beside the scores: what could
be chosen without labels, by the features' effective rank, and by their agreement under a second draw of the noise.

Writes into --out: sweep.png (heat map), sweep.csv (every cell), sweep.txt, sweep.json (settings, cost), best.py (lines to paste into a config).
Finished timesteps are kept there, so that an interrupted sweep goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.utils import cli
from mmdiffrep.utils.files import write
from mmdiffrep.utils.sweep.cells import Plan, check_memory, sweep
from mmdiffrep.utils.sweep.network import SweepNetwork, backbone_config
from mmdiffrep.utils.sweep.report import write_report
from mmdiffrep.utils.sweep.tasks import PROBES, Task, make_task
from mmdiffrep.version import __version__


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config whose backbone is a DiffusionBackbone')
    parser.add_argument('--timesteps', type=float, nargs='+', default=[0, 10, 20, 50, 100, 200], help='for EDM: sigma')
    parser.add_argument('--taps', nargs='+', help="tap strings, paper aliases or patterns such as 'up_blocks.*.resnets.*'; default: every block")
    parser.add_argument('--noise', nargs='+', choices=['none', 'fresh', 'shared', 'per_image'], help="default: the config's")
    parser.add_argument('--seeds', type=int, default=1, help='of noise and probe')
    parser.add_argument('--probe', choices=PROBES, help='default: what the config is for')
    parser.add_argument('--train', type=int, help='images to learn from, spread over the data; default: all')
    parser.add_argument('--val', type=int, help='images, or pairs, to score; default: all')
    parser.add_argument('--pixels', type=int, default=200, help='segmentation: pixels drawn of an image')
    parser.add_argument('--pairs', help="correspondence: the list of pairs; default: the config's, or ToyScenes'")
    parser.add_argument('--epochs', type=int, default=15, help='of the linear layer')
    parser.add_argument('--untrained', action='store_true', help='the same network with random weights, too')
    parser.add_argument('--batch-size', type=int, default=50)
    parser.add_argument('--memory', type=float, default=4.0, help='GiB that kept features may take')
    parser.add_argument('--out', help='folder; default work_dirs/sweep/CONFIG')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config')
    return parser


def run(args: argparse.Namespace) -> None:
    path = cli.existing_config(args.config)
    cfg = Config.fromfile(path)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.seeds < 1 or args.batch_size < 1 or args.epochs < 1 or args.pixels < 1:
        raise ValueError('--seeds, --batch-size, --epochs and --pixels must be at least 1')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    backbone = backbone_config(cfg)
    networks = {'pre-trained': SweepNetwork(backbone, args.taps, args.device)}
    if args.untrained:
        networks['untrained'] = SweepNetwork(backbone, args.taps, args.device, untrained=True)
    first = networks['pre-trained']
    for t in args.timesteps:
        first.backbone.denoiser.schedule.check_timesteps(torch.tensor([t]))
    task = make_task(cfg, args)
    needed = check_memory(task, first.channels, args.memory)
    noises = args.noise or [NoisePolicy(**(backbone.get('noise') or {})).kind]
    out = Path(args.out or Path('work_dirs/sweep', Path(path).stem))
    print(
        f'{len(first.taps)} taps × {len(args.timesteps)} timesteps, {task.count("train")} images to learn from, {task.count("val")} to score; '
        f'features take up to {needed:.2f} GiB', flush=True,
    )  # fmt: skip
    plan = Plan(networks, noises, args.seeds, args.timesteps, settings(cfg, args, networks))
    begin = time.monotonic()
    cells = sweep(plan, task, out, lambda line: print(line, flush=True))
    seconds = time.monotonic() - begin
    images = task.count('train') + task.count('val')
    looks = {name: network.looks for name, network in networks.items()}
    pixels = score_pixels(task)
    cached = str(cfg.model.backbone.type).endswith('CachedBackbone')
    text = write_report(cells, out, task.metric, pixels, cached)
    about = dict(vars(args), seconds=round(seconds, 1), images=images, looks=looks, torch=torch.__version__, version=__version__)
    write(out / 'sweep.json', json.dumps(about, indent=1, default=str))
    print(f'\n{text}\n\nlooks at an image: {looks["pre-trained"] / max(images, 1):.2f}; {seconds:.0f} s')
    print(f'{out}/sweep.png, .csv, .txt, .json; best.py:\n{(out / "best.py").read_text()}', end='')


def settings(cfg: Config, args: argparse.Namespace, networks: dict[str, SweepNetwork]) -> dict[str, Any]:
    """All that shapes a cell, besides its place."""
    shaping = ('probe', 'train', 'val', 'pixels', 'pairs', 'epochs')
    data = {part: cfg.get(f'{part}_dataloader', {}).get('dataset') for part in ('train', 'val')}
    return dict(
        {name: getattr(args, name) for name in shaping},
        networks={name: [str(n.backbone.denoiser.fingerprint), n.taps] for name, n in networks.items()},
        backbone=json.dumps(backbone_config(cfg), sort_keys=True, default=str),
        data=json.dumps(data, sort_keys=True, default=str),
        preprocessor=json.dumps(cfg.model.get('data_preprocessor'), sort_keys=True, default=str),
        versions=[torch.__version__, __version__],
    )


def score_pixels(task: Task) -> float:
    """The colours alone, under the same probe."""
    parts: dict[str, torch.Tensor] = {}
    for part in ('val', 'train'):
        rows = [task.keep(task.pixels(images), about, tuple(images.shape[-2:]))[0] for images, about in task.batches(part)]
        parts[part] = torch.cat(rows) if rows else torch.zeros(0, 1)
    return task.score(parts['train'], parts['val'], 0)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: run(args))


if __name__ == '__main__':
    raise SystemExit(main())
