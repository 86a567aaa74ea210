"""A confusion matrix as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WRITTEN = 25  # classes up to which numbers are written into the cells
NAMED = 60  # and names beside the rows


def confusion_picture(counts: np.ndarray, classes: Sequence[str], title: str = '') -> np.ndarray:
    """Counts (K, K), truth by prediction -> (H, W, 3) uint8; colours are shares of each row, the percent of a class's images."""
    counts = np.asarray(counts)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f'counts {counts.shape} and {len(classes)} classes do not fit; allowed: (K, K) and K names')
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = min(14.0, 3 + 0.38 * len(classes))
    figure = Figure(figsize=(side + 1, side), dpi=110, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    drawn = axis.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="percent of the true class's images")
    axis.set_xlabel('predicted')
    axis.set_ylabel('true')
    if len(classes) <= NAMED:
        places = range(len(classes))
        axis.set_xticks(places, classes, rotation=90, fontsize=8)
        axis.set_yticks(places, classes, fontsize=8)
    if len(classes) <= WRITTEN:
        for (y, x), value in np.ndenumerate(shares):
            axis.text(x, y, f'{value:.0f}', ha='center', va='center', fontsize=7, color='white' if value > 55 else 'black')
    if title:
        axis.set_title(title, fontsize=11)
    file = io.BytesIO()
    figure.savefig(file, format='png')
    del canvas
    return cv2.imdecode(np.frombuffer(file.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1].copy()
