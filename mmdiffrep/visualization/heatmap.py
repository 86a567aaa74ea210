"""A table of numbers as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def heatmap(
    panels: Sequence[tuple[str, np.ndarray]],
    columns: Sequence[str],
    rows: Sequence[str],
    title: str = '',
    column_label: str = '',
    mark_best: bool = False,
) -> np.ndarray:
    """Tables (R, C) side by side on one colour scale, each number written in its cell: (H, W, 3) uint8.

    Args:
        panels: (name, values); nan leaves a cell empty.
        columns, rows: their names, the same in every panel.
        mark_best: frame each panel's largest value.
    """
    values = np.concatenate([value.ravel() for _, value in panels])
    low, high = np.nanmin(values), np.nanmax(values)
    width = 1.6 + 0.08 * max(map(len, rows)) + len(panels) * (0.7 * len(columns) + 0.4)
    figure = Figure(figsize=(width, 1.5 + 0.32 * len(rows)), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for n, (axis, (name, table)) in enumerate(zip(axes, panels)):
        axis.imshow(table, cmap='viridis', vmin=low, vmax=high, aspect='auto')
        axis.set_title(name, fontsize=10)
        axis.set_xticks(range(len(columns)), columns, fontsize=8)
        axis.set_yticks(range(len(rows)), rows if n == 0 else [''] * len(rows), fontsize=8)
        axis.set_xlabel(column_label, fontsize=9)
        for (y, x), value in np.ndenumerate(table):
            if np.isfinite(value):
                dark = value < low + 0.6 * (high - low)
                axis.text(x, y, f'{value:.1f}', ha='center', va='center', fontsize=8, color='white' if dark else 'black')
        if mark_best:
            y, x = np.unravel_index(np.nanargmax(table), table.shape)
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor='red', linewidth=2))
    if title:
        figure.suptitle(title, fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format='png')
    del canvas
    return cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].copy()
