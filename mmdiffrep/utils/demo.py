"""What the demonstrations share: running a tool with its progress, reading its scores, drawing what the network sees."""

from __future__ import annotations

import collections
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdiffrep.diffusion.noise import NoisePolicy
from mmdiffrep.visualization import feature_sheet, write_picture

from .taps import find_backbone, uncut_denoiser

# which of mmengine's log lines are shown; all of them go into the log
PROGRESS = re.compile(
    r'Iter\(train\)|Iter\((val|test)\) \[|Saving checkpoint|/mmdiffrep/.*Warning: '
)
LONGEST = 150  # letters of a line that is shown
BLOCKS = re.compile(r'((down|up)_blocks\.\d+|mid_block)')


def shown_command(argv: Sequence[str | Path], folder: Path) -> str:
    """A Python tool's command line, to be typed in ``folder``: ``python ../tools/train.py …``."""
    return shlex.join(['python', *(_from(folder, arg) for arg in argv)])


def _from(folder: Path, arg: str | Path) -> str:
    """A path as seen from a folder where that is shorter; else the word itself."""
    if not isinstance(arg, Path) or not arg.is_absolute():
        return str(arg)
    return min(os.path.relpath(arg, folder), str(arg), key=len)


def run_tool(argv: Sequence[str | Path], work_dir: Path, folder: Path) -> float:
    """Run a Python tool in ``folder`` and show its progress. The seconds it took.

    Args:
        argv: the tool and its arguments.
        work_dir: emptied first; gets all of the output as ``output.log``.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    shutil.rmtree(work_dir, ignore_errors=True)  # an earlier demonstration's
    work_dir.mkdir(parents=True)
    start, log = time.perf_counter(), work_dir / 'output.log'
    last: collections.deque[str] = collections.deque(maxlen=30)
    command = [sys.executable, '-u', *map(str, argv)]
    with (
        open(log, 'w', encoding='utf-8') as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', cwd=folder
        ) as process,
    ):  # fmt: skip
        for line in process.stdout or ():
            file.write(line)
            last.append(line)
            if PROGRESS.search(line):
                print(f'  {progress_line(line)}', flush=True)
    if process.returncode:
        raise RuntimeError(f'{Path(argv[0]).name} failed ({log}):\n{"".join(last)}')
    return time.perf_counter() - start


def progress_line(line: str) -> str:
    """A line of mmengine's log without its head, and no longer than a terminal's."""
    text = line.split(' - INFO - ')[-1].strip()
    return text if len(text) <= LONGEST else text[: LONGEST - 2].rsplit(' ', 1)[0] + ' …'


def read_scores(work_dir: Path, metric: str) -> dict[str, float]:
    """The last metrics that training or testing wrote into its work dir, in the newest of its logs.

    Args:
        metric: one that they must have, e.g. ``'mIoU'``.

    Raises:
        RuntimeError: nothing there has it.
    """
    for stamp in sorted(work_dir.glob('*/'), reverse=True):
        found = [
            line
            for file in (stamp / 'vis_data' / 'scalars.json', stamp / f'{stamp.name}.json')
            if file.is_file()
            for line in map(json.loads, filter(None, file.read_text().splitlines()))
            if metric in line
        ]
        if found:
            return found[-1]
    raise RuntimeError(
        f'{work_dir} has no */vis_data/scalars.json with {metric}: it was not validated'
    )


def draw_features(
    config: Any, images: Sequence[np.ndarray], out: Path, blocks: bool = True
) -> list[tuple[Path, str]]:
    """Principal components of the taps of a config's backbone, and of every block of the whole network: files with what they show.

    Args:
        config: mmengine ``Config``.
        images: RGB (H, W, 3) uint8, of one size.
        blocks: whether to draw ``features_blocks.png`` beside ``features_taps.png``.
    """
    backbone = find_backbone(config)
    denoiser = uncut_denoiser(backbone)
    rgb = torch.from_numpy(np.stack(list(images))).permute(0, 3, 1, 2).float() / 127.5 - 1
    t = torch.full((len(rgb),), backbone['timesteps'])
    noise = NoisePolicy(**backbone.get('noise', {})).draw(tuple(rgb.shape))
    x_t = rgb if noise is None else denoiser.schedule.add_noise(rgb, noise, t)
    chosen = [
        ('features_taps', list(backbone['taps']), 'the taps that the segmentor reads', 176),
    ]
    if blocks:
        every = [tap for tap in denoiser.tap_info(images[0].shape[:2]) if BLOCKS.fullmatch(tap)]
        chosen.append(('features_blocks', every, 'every block of the U-Net', 112))
    files = []
    for name, taps, what, side in chosen:
        with torch.no_grad():
            maps = denoiser.features(x_t, t, taps=taps)
        title = f'The first three principal components of {what}, at t = {t[0]}'
        sheet = feature_sheet(images, maps, title=title, side=side)
        files.append((write_picture(out / f'{name}.png', sheet), f'PCA of {what}'))
    return files
