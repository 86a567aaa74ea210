#!/usr/bin/env python
"""Train a segmentor on the shipped diffusion features and the same one with a stock backbone; compare and draw both."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.datasets.toyscenes import write_toyscenes
from mmdiffrep.utils.demo import draw_features, read_scores, run_tool, shown_command
from mmdiffrep.utils.taps import format_table
from mmdiffrep.visualization import contact_sheet, legend, overlay, write_picture

ROOT = Path(__file__).resolve().parents[1]
DIFFUSION = ROOT / 'configs/fpn/diffusion_toy-unet_fpn_300i_toyscenes-64x64.py'
STOCK = ROOT / 'configs/fpn/r18_fpn_300i_toyscenes-64x64.py'
SCENES = dict(train=200, val=100)
SIZE = (128, 128)
SHOWN, SHOWN_FEATURES = 6, 4  # validation scenes on the sheets


@dataclass
class Run:
    """A finished training."""

    name: str
    folder: Path
    miou: float
    seconds: float
    model: Any = None

    @property
    def config(self) -> Path:
        return next(self.folder.glob('*.py'))

    @property
    def checkpoint(self) -> Path:
        return Path((self.folder / 'last_checkpoint').read_text().strip())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'demo_output/backbones', help='folder to write'
    )
    parser.add_argument('--iters', type=int, help="training iterations; default: the configs'")
    args = parser.parse_args(argv)
    out, start = args.out.resolve(), time.perf_counter()
    try:
        scenes = draw_scenes(out)
        runs = [
            train(2, 'diffusion U-Net', DIFFUSION, scenes, out, args.iters),
            train(3, 'ResNet-18', STOCK, scenes, out, args.iters),
        ]
        say(4, 'drawing what both predict, and what the diffusion network sees')
        pictures = draw(runs, out)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'\n{summary(runs)}\n')
    for path, what in pictures:
        print(f'{path}\n    {what}')
    print(f'\nDone in {time.perf_counter() - start:.0f} s. Logs and checkpoints: {out / "runs"}')
    return 0


def say(step: int, text: str) -> None:
    print(f'\n[{step}/4] {text}', flush=True)


def draw_scenes(out: Path) -> Path:
    say(1, f'ToyScenes: {SCENES["train"]} pictures to train on, {SCENES["val"]} to validate on')
    folder = out / f'toyscenes-{SIZE[0]}-{"-".join(map(str, SCENES.values()))}'
    return write_toyscenes(folder, SCENES, SIZE, workers=2)


def train(step: int, name: str, config: Path, scenes: Path, out: Path, iters: int | None) -> Run:
    """Train through tools/train.py, showing the progress.

    Raises:
        RuntimeError: the training failed; with the end of its output.
    """
    folder = out / 'runs' / config.stem
    options = [
        f'{loader}_dataloader.dataset.data_root={scenes}' for loader in ('train', 'val', 'test')
    ]
    if iters is not None:
        options += [f'train_cfg.max_iters={iters}', f'train_cfg.val_interval={iters}']
    command = [ROOT / 'tools/train.py', config, '--work-dir', folder, '--cfg-options', *options]
    say(step, f'FPN on a {name}: {shown_command(command[:2], Path.cwd())}')
    seconds = run_tool(command, folder, Path.cwd())
    return Run(name, folder, read_scores(folder, 'mIoU')['mIoU'], seconds)


def summary(runs: list[Run]) -> str:
    rows = []
    for run in runs:
        trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
        rows.append((run.name, f'{run.miou:.2f}', f'{trained:,}', f'{run.seconds:.0f}'))
    note = (
        f'Both: the same FPN head, {SCENES["train"]} labelled scenes, the same iterations, one seed; '
        f'mIoU on {SCENES["val"]} others.\nThe diffusion U-Net is frozen and saw such scenes without labels before; '
        'the ResNet-18 starts from nothing.'
    )
    head = ['backbone', 'mIoU', 'trained parameters', 'seconds']
    return f'{format_table(head, rows)}\n\n{note}'


def draw(runs: list[Run], out: Path) -> list[tuple[Path, str]]:
    """Overlays and feature pictures; each file with what it shows."""
    from mmengine.config import Config

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        predicted = [predict(run, SHOWN) for run in runs]
    samples = predicted[0]
    names, palette = samples.names, samples.palette
    rows = [
        [overlay(image, labels, palette, opacity, side=176)
         for labels, opacity in ((truth, 0.0), (truth, 0.7), (first, 0.7), (second, 0.7))]
        for image, truth, first, second in zip(
            samples.images, samples.truths, samples.predictions, predicted[1].predictions
        )
    ]  # fmt: skip
    for row, image in zip(rows, samples.images):
        row[0] = overlay(image, np.full(image.shape[:2], 255), palette, side=176)
    heads = ['image', 'truth', *(f'{run.name}\nmIoU {run.miou:.1f}' for run in runs)]
    sheet = contact_sheet(
        rows, heads, title='ToyScenes, validation', footer=legend(names, palette, 4 * 176 + 24, 10)
    )
    overlays = write_picture(out / 'overlays.png', sheet)
    return [
        (overlays, 'image | truth | both predictions'),
        *draw_features(Config.fromfile(runs[0].config), samples.images[:SHOWN_FEATURES], out),
    ]


@dataclass
class Samples:
    """Validation scenes with a model's predictions."""

    images: list[np.ndarray]  # RGB
    truths: list[np.ndarray]
    predictions: list[np.ndarray]
    names: list[str]
    palette: list[list[int]]


def predict(run: Run, count: int) -> Samples:
    """The first validation scenes through the run's last checkpoint; the model stays with the run."""
    from mmengine.config import Config
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, init_default_scope
    from mmseg.apis import init_model

    cfg = Config.fromfile(run.config)
    init_default_scope(cfg.default_scope)
    run.model = init_model(cfg, str(run.checkpoint), device='cpu')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    records = [dataset[i] for i in range(min(count, len(dataset)))]
    with torch.no_grad():
        results = run.model.test_step(pseudo_collate(records))
    return Samples(
        images=[r['inputs'].numpy()[::-1].transpose(1, 2, 0).copy() for r in records],
        truths=[r['data_samples'].gt_sem_seg.data[0].numpy() for r in records],
        predictions=[r.pred_sem_seg.data[0].cpu().numpy() for r in results],
        names=list(dataset.metainfo['classes']),
        palette=[list(colour) for colour in dataset.metainfo['palette']],
    )


if __name__ == '__main__':
    raise SystemExit(main())
