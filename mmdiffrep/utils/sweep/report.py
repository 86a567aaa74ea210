"""What a sweep found: a table, a CSV, heat maps, and the best cell as lines to paste."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmdiffrep.evaluation.probes import spearman
from mmdiffrep.visualization import write_picture
from mmdiffrep.visualization.heatmap import heatmap

from ..files import write
from ..taps import format_table
from .cells import Cell

FIELDS = ('network', 'noise', 'seed', 'timestep', 'tap', 'score', 'rank', 'agreement')


def grids(cells: Sequence[Cell], field: str = 'score') -> dict[tuple[str, str], np.ndarray]:
    """(network, noise) -> (taps, timesteps, seeds)."""
    taps, times, seeds = ([*dict.fromkeys(getattr(c, name) for c in cells)] for name in ('tap', 'timestep', 'seed'))
    found: dict[tuple[str, str], np.ndarray] = {}
    for cell in cells:
        table = found.setdefault((cell.network, cell.noise), np.full((len(taps), len(times), len(seeds)), np.nan))
        value = getattr(cell, field)
        table[taps.index(cell.tap), times.index(cell.timestep), seeds.index(cell.seed)] = np.nan if value is None else value
    return found


def best_cell(cells: Sequence[Cell]) -> tuple[str, str, float, str, float]:
    """(network, noise, timestep, tap, mean score) of the pre-trained network's best cell over the seeds."""
    taps, times = ([*dict.fromkeys(getattr(c, name) for c in cells)] for name in ('tap', 'timestep'))
    own = {key: table.mean(2) for key, table in grids(cells).items() if key[0] == 'pre-trained'}
    key = max(own, key=lambda k: own[k].max())
    row, column = np.unravel_index(own[key].argmax(), own[key].shape)
    return (*key, times[column], taps[row], float(own[key].max()))


def fragment(tap: str, timestep: float, noise: str, cached: bool) -> str:
    """The best cell as a config's lines."""
    inner = f'dict(taps=[{tap!r}], timesteps={timestep:g}, noise=dict(kind={noise!r}))'
    return f'model = dict(backbone=dict(backbone={inner}))\n' if cached else f'model = dict(backbone={inner})\n'


def without_labels(cells: Sequence[Cell]) -> list[str]:
    """What a choice by effective rank, or by agreement of two draws, would have got, against the choice by labels."""
    lines = []
    for (network, noise), table in grids(cells).items():
        if network != 'pre-trained':
            continue
        scores = table.mean(2)
        taps, times = ([*dict.fromkeys(getattr(c, name) for c in cells)] for name in ('tap', 'timestep'))
        for field, what in (('rank', 'effective rank'), ('agreement', 'agreement of two draws')):
            guess = grids(cells, field)[network, noise].mean(2)
            if np.isnan(guess).any():
                continue
            row, column = np.unravel_index(guess.argmax(), guess.shape)
            correlation = spearman(torch.tensor(guess.ravel()), torch.tensor(scores.ravel()))
            lines.append(
                f'without labels, noise {noise}, largest {what}: {taps[row]}, t = {times[column]:g}: {scores[row, column]:.1f}, '
                f'{scores.max() - scores[row, column]:.1f} below the best; rank correlation over {scores.size} cells {correlation:+.2f}'
            )
    return lines


def summary(cells: Sequence[Cell], metric: str, pixels: float | None) -> str:
    """Tables of mean ± deviation over the seeds, the best cells, the choices without labels."""
    taps, times = ([*dict.fromkeys(getattr(c, name) for c in cells)] for name in ('tap', 'timestep'))
    lines = [metric]
    for (network, noise), table in grids(cells).items():
        mean, deviation = table.mean(2), table.std(2)
        several = table.shape[2] > 1
        rows = [
            [tap, *(f'{m:.1f} ± {d:.1f}' if several else f'{m:.1f}' for m, d in zip(mean[r], deviation[r]))]
            for r, tap in enumerate(taps)
        ]
        row, column = np.unravel_index(mean.argmax(), mean.shape)
        lines += [
            '',
            f'{network}, noise {noise}: best {mean.max():.2f} at {taps[row]}, t = {times[column]:g}',
            format_table(['tap', *(f'{t:g}' for t in times)], rows),
        ]
    lines += ['', *without_labels(cells)]
    if pixels is not None:
        lines.append(f'pixels alone: {pixels:.1f}')
    return '\n'.join(lines)


def write_report(cells: Sequence[Cell], folder: Path, metric: str, pixels: float | None, cached: bool) -> str:
    """``sweep.csv``, ``sweep.png``, ``sweep.txt`` and ``best.py`` in ``folder``; the text."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(FIELDS)
    writer.writerows([getattr(cell, name) for name in FIELDS] for cell in cells)
    write(folder / 'sweep.csv', table.getvalue())
    taps, times = ([*dict.fromkeys(getattr(c, name) for c in cells)] for name in ('tap', 'timestep'))
    panels = [(f'{network}, {noise} noise', grid.mean(2)) for (network, noise), grid in grids(cells).items()]
    title = metric + ('' if pixels is None else f' (pixels {pixels:.1f})')
    write_picture(folder / 'sweep.png', heatmap(panels, [f'{t:g}' for t in times], taps, title, 'timestep', mark_best=True))
    text = summary(cells, metric, pixels)
    write(folder / 'sweep.txt', text + '\n')
    _, noise, t, tap, score = best_cell(cells)
    write(folder / 'best.py', f'# {metric}: {score:.2f}, the best of {len(taps)} taps × {len(times)} timesteps\n' + fragment(tap, t, noise, cached))
    return text
