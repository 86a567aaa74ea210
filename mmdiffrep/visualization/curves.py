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
