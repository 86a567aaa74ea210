"""Curves over training steps as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], label: str, logarithmic: bool = True
) -> np.ndarray:
    """Name -> points (step, value), drawn into one picture (H, W, 3) uint8.

    Raises:
        ValueError: nothing to draw, or a value that is not positive on a logarithmic axis.
    """
    if not any(len(points) for points in curves.values()):
        raise ValueError(f'no curve of {label!r} to draw')
    low = [name for name, points in curves.items() if logarithmic and any(y <= 0 for _, y in points)]
    if low:
        raise ValueError(f'{label!r} of {low[0]!r} is not positive everywhere: a logarithmic axis cannot show it; take a linear one')
    figure = Figure(figsize=(7, 3.6), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k, (name, points) in enumerate(curves.items()):
        style = ('-', '--', ':')[k // len(COLOURS) % 3]
        axes.plot(*zip(*points), style, color=COLOURS[k % len(COLOURS)], label=name, linewidth=1.4)
    axes.set(xlabel='step', ylabel=label, yscale='log' if logarithmic else 'linear')
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_spreads(
    curves: Mapping[str, Sequence[tuple[float, float, float]]],
    xlabel: str,
    ylabel: str,
    title: str = '',
    hollow: Sequence[str] = (),
    note: str = '',
) -> np.ndarray:
    """Name -> points (x, mean, deviation), as lines with bars over a logarithmic axis: (H, W, 3) uint8.

    Args:
        hollow: names whose marks are hollow; ``note`` says what that means.

    Raises:
        ValueError: nothing to draw, or an x that is not positive.
    """
    xs = sorted({x for points in curves.values() for x, _, _ in points})
    if not xs or xs[0] <= 0:
        raise ValueError(f'{xlabel}: {xs[:3]} cannot be drawn on a logarithmic axis; needed: positive numbers')
    figure = Figure(figsize=(7, 4), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for k, (name, points) in enumerate(curves.items()):
        colour = COLOURS[k % len(COLOURS)]
        # bars of one place stand side by side
        aside = 1.012 ** (k - (len(curves) - 1) / 2)
        x, mean, deviation = zip(*((x * aside, mean, deviation) for x, mean, deviation in points))
        axes.errorbar(
            x, mean, yerr=deviation, fmt='osD^vP'[k // len(COLOURS) % 6] + '-', color=colour, label=name, linewidth=1.4, markersize=6,
            markerfacecolor='white' if name in hollow else colour, capsize=3, elinewidth=1.2, zorder=3,
        )  # fmt: skip
    axes.set_xscale('log')
    axes.set_xticks(xs, [f'{x:g}' for x in xs])
    axes.set_xticks([], minor=True)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, loc='left', fontsize=11, parse_math=False)
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    # above the names, where no title can run into it
    told = note if any(name in hollow for name in curves) else None
    legend = axes.legend(fontsize=8.5, frameon=False, loc='upper left', bbox_to_anchor=(1, 1), title=told, alignment='left')
    legend.get_title().set(fontsize=8, color='#8a8a92')
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
