"""Text, legends and contact sheets. Pictures are RGB arrays (H, W, 3) uint8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, PAPER = (32, 32, 36), (255, 255, 255)
DPI = 100


def text_picture(
    text: str,
    size: float = 11,
    bold: bool = False,
    align: str = 'left',
    ink: Sequence[int] = INK,
    paper: Sequence[int] = PAPER,
) -> np.ndarray:
    """Lines of text, just large enough: (h, w, 3).

    Args:
        size: of the letters, in points at 100 dots an inch (11 is about 15 pixels).
        align: ``'left'``, ``'center'`` or ``'right'``, of the lines among each other.
    """
    figure = Figure(figsize=(1, 1), dpi=DPI, facecolor=[c / 255 for c in paper])
    canvas = FigureCanvasAgg(figure)
    drawn = figure.text(
        0, 0, text, fontsize=size, fontweight='bold' if bold else 'normal', linespacing=1.3,
        ha='left', va='baseline', multialignment=align, color=[c / 255 for c in ink], parse_math=False,
    )  # fmt: skip
    renderer = canvas.get_renderer()
    box = drawn.get_window_extent(renderer)  # around the last line's baseline
    _, tall, below = renderer.get_text_width_height_descent(
        'Ájg|', drawn.get_fontproperties(), False
    )
    # as high with letters that reach up and down as without, so that texts side by side stand on one line
    bottom, top = max(-box.y0, below), max(box.y1, tall - below)
    width, height = int(np.ceil(box.width)) + 2, int(np.ceil(bottom + top)) + 2
    figure.set_size_inches(width / DPI, height / DPI)
    drawn.set_position(((1 - box.x0) / width, (1 + bottom) / height))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def legend(
    names: Sequence[str], palette: Sequence[Sequence[int]], width: int, size: float = 11
) -> np.ndarray:
    """Colour swatches with their class names, in as many columns as fit into ``width`` pixels: (h, width, 3)."""
    if len(names) != len(palette):
        raise ValueError(
            f'a legend needs one colour a name, got {len(names)} names, {len(palette)} colours'
        )
    texts = [text_picture(name, size) for name in names]
    swatch, gap = round(size * 1.5), round(size * 0.7)
    cell_w = max((t.shape[1] for t in texts), default=0) + swatch + 3 * gap
    cell_h = max([swatch, *(t.shape[0] for t in texts)]) + gap
    columns = max(1, min(len(names), width // cell_w))
    rows = -(-len(names) // columns)
    columns = -(-len(names) // rows) if rows else 1  # as even as possible
    sheet = np.full((max(1, rows * cell_h), max(width, cell_w), 3), PAPER, np.uint8)
    for i, (text, colour) in enumerate(zip(texts, palette)):
        y, x = (i // columns) * cell_h, (i % columns) * cell_w
        top = y + (cell_h - swatch) // 2
        sheet[top : top + swatch, x : x + swatch] = [int(0.75 * c) for c in colour]  # its outline
        sheet[top + 1 : top + swatch - 1, x + 1 : x + swatch - 1] = colour
        _paste(sheet, text, y + (cell_h - text.shape[0]) // 2, x + swatch + gap)
    return sheet


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    column_titles: Sequence[str] | None = None,
    row_titles: Sequence[str] | None = None,
    title: str = '',
    footer: np.ndarray | None = None,
    gap: int = 8,
    text_size: float = 11,
) -> np.ndarray:
    """Pictures in a grid with titles: (H, W, 3).

    Args:
        rows: of pictures; None leaves a place empty. Each picture is centred in its cell and keeps its pixels.
        column_titles, row_titles: may have several lines; a column is made wide enough for its title.
        footer: a picture below the grid, such as a :func:`legend`.

    Raises:
        ValueError: there are no pictures, or titles that do not fit the grid.
    """
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError('a contact sheet needs at least one picture')
    for what, given, wanted in (
        ('column', column_titles, columns),
        ('row', row_titles, len(rows)),
    ):
        if given is not None and len(given) != wanted:
            raise ValueError(f'{len(given)} {what} titles were given for {wanted} {what}s')
    heads = [text_picture(t, text_size, align='center') for t in column_titles or []]
    sides = [text_picture(t, text_size, align='right') for t in row_titles or []]
    # columns may differ in width, rows in height
    widths = [
        max([p.shape[1] for row in rows for p in row[k : k + 1] if p is not None]
            + [h.shape[1] for h in heads[k : k + 1]], default=1)
        for k in range(columns)
    ]  # fmt: skip
    heights = [
        max([p.shape[0] for p in row if p is not None] + [s.shape[0] for s in sides[r : r + 1]], default=1)
        for r, row in enumerate(rows)
    ]  # fmt: skip
    margin = 2 * gap
    left = margin + (max(s.shape[1] for s in sides) + gap if sides else 0)
    headline = text_picture(title, text_size * 1.35, bold=True) if title else None
    head_top = margin + (headline.shape[0] + margin if headline is not None else 0)
    top = head_top + (max(h.shape[0] for h in heads) + gap if heads else 0)
    xs = [left + sum(widths[:k]) + k * gap for k in range(columns)]
    ys = [top + sum(heights[:r]) + r * gap for r in range(len(rows))]
    bottom = ys[-1] + heights[-1]
    right = max(
        [xs[-1] + widths[-1]] + [margin + x.shape[1] for x in (headline, footer) if x is not None]
    )
    height = bottom + (margin + footer.shape[0] if footer is not None else 0) + margin
    sheet = np.full((height, right + margin, 3), PAPER, np.uint8)
    if headline is not None:
        _paste(sheet, headline, margin, margin)
    for x, width, head in zip(xs, widths, heads):
        _paste(sheet, head, top - gap - head.shape[0], x + (width - head.shape[1]) // 2)
    for y, tall, side in zip(ys, heights, sides):
        _paste(sheet, side, y + (tall - side.shape[0]) // 2, left - gap - side.shape[1])
    for y, tall, row in zip(ys, heights, rows):
        for x, width, picture in zip(xs, widths, row):
            if picture is not None:
                _paste(
                    sheet,
                    picture,
                    y + (tall - picture.shape[0]) // 2,
                    x + (width - picture.shape[1]) // 2,
                )
    if footer is not None:
        _paste(sheet, footer, bottom + margin, left if left + footer.shape[1] <= right else margin)
    return sheet


def write_picture(path: str | Path, picture: np.ndarray) -> Path:
    """Write RGB (H, W, 3) uint8 as PNG, complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix='.png', dir=path.parent)
    os.close(handle)
    try:
        if not cv2.imwrite(temporary, np.ascontiguousarray(picture[..., ::-1])):
            raise OSError(f'{path} could not be written')
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _paste(sheet: np.ndarray, picture: np.ndarray, y: int, x: int) -> None:
    sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
