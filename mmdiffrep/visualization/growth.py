"""Pictures of how cost grows, and of memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')


def draw_growth(
    numbers: Sequence[int],
    parts: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    powers: Sequence[float],
    memory: Sequence[int],
    unit: str,
    title: str,
) -> np.ndarray:
    """Measured seconds (points) with the fitted order (lines) on logarithmic axes, and peak memory beside them: (H, W, 3) uint8.

    Args:
        parts: name -> (seconds of each number, factors of the powers).
        memory: bytes.
    """
    figure = Figure(figsize=(9, 3.6), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    along = np.geomspace(min(numbers), max(numbers), 100)
    for colour, (name, (seconds, factors)) in zip(COLOURS, parts.items()):
        left.plot(numbers, seconds, 'o', color=colour, label=name)
        fitted = sum(factor * along**power for factor, power in zip(factors, powers))
        if np.any(fitted > 0):
            terms = ' + '.join(f'{letter}{_power(power)}' for letter, power in zip('abc', powers))
            left.plot(along, fitted, '-', color=colour, linewidth=1, label=f'{name}: fit of {terms}')
    left.set_xscale('log')
    left.set_yscale('log')
    left.set_ylabel('seconds')
    left.legend(fontsize=7, frameon=False)
    right.plot(numbers, np.asarray(memory) / 2**30, 'o-', color='black')
    right.set_xscale('log')
    right.set_ylim(0, 1.1 * max(memory) / 2**30)
    right.set_ylabel('peak memory of the process, GiB')
    for axes in (left, right):
        axes.set_xlabel(unit)
        axes.set_xticks(numbers, [str(n) for n in numbers], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[['top', 'right']].set_visible(False)
    figure.suptitle(title, fontsize=10)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _power(power: float) -> str:
    return '' if power == 0 else '·n' if power == 1 else f'·n^{power:g}'


def draw_steady(traces: Mapping[str, Sequence[tuple[int, int]]]) -> np.ndarray:
    """Memory of the process (bytes) over iterations, a line a kind of work: (H, W, 3) uint8."""
    figure = Figure(figsize=(7, 3.6), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for colour, (name, trace) in zip(COLOURS, traces.items()):
        axes.plot([n for n, _ in trace], [m / 2**20 for _, m in trace], color=colour, label=name)
    axes.set_ylim(0, 1.1 * max(m for trace in traces.values() for _, m in trace) / 2**20)
    axes.set_xlabel('iterations')
    axes.set_ylabel('memory of the process, MiB')
    axes.legend(frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
