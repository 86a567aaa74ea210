"""A picture of a comparison: quality over cost."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from matplotlib.transforms import ScaledTranslation

from . import pretraining
from .report import Comparison, Line
from .text import amount

# what `--cost` names: the axis' title and a line's cost in its unit
AXES: dict[str, tuple[str, Callable[[Line], float | None]]] = {
    'flops': ('FLOPs an image', lambda line: line.cost.get('flops')),
    'params': ('parameters, frozen ones included', lambda line: line.cost.get('parameters')),
    'seconds': ('seconds an image', lambda line: _seconds(line)),
    'memory': ('peak memory, bytes', lambda line: line.cost.get('memory')),
}
# Okabe and Ito's colours, which colour-blind people tell apart
COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000']
INK, FAINT = '#202024', '#8a8a92'
DPI = 150
# where a name may stand from its point: points to the right, upwards; which side of it is there
PLACES = [
    (side * dx, dy, 'left' if side > 0 else 'right')
    for dy in (0, 14, -14, 28, -28, 42, -42, 56, -56)
    for side, dx in ((1, 15), (-1, 10))
]


def draw(comparison: Comparison, cost: str = 'flops') -> tuple[bytes, list[str]]:
    """The PNG, and the names of the entries that it leaves out, their cost being unknown or nothing.

    Each entry is a point at its mean, with bars of one deviation and a small mark for each seed; hollow where nothing was
    pre-trained.

    Raises: ValueError for an unknown cost.
    """
    if cost not in AXES:
        raise ValueError(f'--cost {cost!r} is unknown; allowed: {", ".join(AXES)}')
    title, read = AXES[cost]
    costs = [(line, read(line)) for line in comparison.ordered()]
    points = [(line, value) for line, value in costs if value]
    figure = Figure(figsize=(8, 5), dpi=DPI, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(points))]
    for colour, (line, x) in zip(colours, points):
        _point(axes, line, x, comparison.metrics[0], colour)
    _dress(axes, comparison, title, [x for _, x in points])
    _label(axes, canvas, points, comparison.metrics[0], colours)
    file = io.BytesIO()
    figure.savefig(file, format='png')
    return file.getvalue(), [line.name for line, value in costs if not value]


def _point(axes: Any, line: Line, x: float, metric: str, colour: str) -> None:
    scores = line.scores(metric)
    mean = statistics.mean(scores)
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    filled = pretraining.is_pretrained(line.cfg)
    axes.errorbar(
        [x], [mean], yerr=[deviation] if deviation else None, fmt='o', color=colour, markersize=9, capsize=4,
        markerfacecolor=colour if filled else 'white', markeredgewidth=1.8, elinewidth=1.5, zorder=3,
    )  # fmt: skip
    if len(scores) > 1:  # beside the bar
        aside = axes.transData + ScaledTranslation(9 / 72, 0, axes.figure.dpi_scale_trans)
        xs = [x] * len(scores)
        axes.plot(xs, scores, '.', color=colour, alpha=0.6, markersize=5, transform=aside)


def _dress(axes: Any, comparison: Comparison, cost: str, costs: Sequence[float]) -> None:
    axes.set_xscale('log')
    if costs:  # room for the names beside the points
        spread = max(max(costs) / min(costs), 2.0)
        axes.set_xlim(min(costs) / spread**0.15, max(costs) * spread**0.15)
    axes.margins(y=0.18)
    narrow = not costs or max(costs) / min(costs) < 1000
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _tick(x)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ''))
    axes.set_xlabel(cost, color=INK)
    axes.set_ylabel(comparison.metrics[0], color=INK)
    axes.grid(alpha=0.25, which='major')
    axes.spines[['top', 'right']].set_visible(False)
    seeds = len(comparison.lines[0].results)
    what = f'mean ± deviation of {seeds} seeds' if seeds > 1 else 'one seed'
    legend = f'{what}; filled: pre-trained, hollow: not'
    name = f'{comparison.tag}: ' if comparison.tag else ''
    title = f'{name}{comparison.metrics[0]} over cost'
    axes.set_title(title, loc='left', color=INK, parse_math=False)
    axes.annotate(
        legend, (1, 1), (0, 6), xycoords='axes fraction', textcoords='offset points', ha='right', fontsize=8.5, color=FAINT
    )  # fmt: skip


def _label(
    axes: Any,
    canvas: Any,
    points: Sequence[tuple[Line, float]],
    metric: str,
    colours: Sequence[str],
) -> None:
    """Names beside the points, at the nearest of several places where they meet no other name or point."""
    canvas.draw()
    taken = [_extent(axes, x, line.scores(metric)) for line, x in points]
    for colour, (line, x) in zip(colours, points):
        place = (x, statistics.mean(line.scores(metric)))
        best = None
        for dx, dy, side in PLACES:
            text = axes.annotate(
                line.short, place, (dx, dy), textcoords='offset points', ha=side, va='center', fontsize=9.5,
                color=colour, zorder=4, parse_math=False,
            )  # fmt: skip
            box = text.get_window_extent(canvas.get_renderer()).extents
            cost = _outside(axes, box) + 1000 * sum(_meet(box, other) for other in taken)
            worse = text
            if best is None or cost < best[0]:
                worse = best[1] if best else None
                best = (cost, text, box)
            if worse is not None:
                worse.remove()
            if cost == 0:
                break
        taken.append(best[2])


def _extent(axes: Any, x: float, scores: Sequence[float]) -> tuple[float, float, float, float]:
    """What a point with its bar and its seeds takes on the canvas: (left, bottom, right, top) in pixels."""
    mean = statistics.mean(scores)
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    left, low = axes.transData.transform((x, min([mean - deviation, *scores])))
    _, high = axes.transData.transform((x, max([mean + deviation, *scores])))
    return left - 12, low - 8, left + (26 if len(scores) > 1 else 12), high + 8


def _outside(axes: Any, box: Sequence[float]) -> float:
    """By how many pixels a box reaches beyond the sides of the axes."""
    frame = axes.get_window_extent()
    return max(frame.x0 - box[0], 0) + max(box[2] - frame.x1, 0)


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _tick(value: float) -> str:
    """'10 M', '0.5', '1.5 G'"""
    number, _, prefix = amount(value).partition(' ')
    if '.' in number:
        number = number.rstrip('0').rstrip('.')
    return f'{number} {prefix}'.rstrip()


def _seconds(line: Line) -> float | None:
    speed = line.cost.get('images_per_second')
    return 1 / speed if speed else None

