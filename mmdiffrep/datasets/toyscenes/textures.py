"""Procedural textures. What makes each one recognisable is its structure; its colours vary strongly."""

from __future__ import annotations

import cv2
import numpy as np

Rng = np.random.Generator


def smooth_noise(rng: Rng, height: int, width: int, cell_y: float, cell_x: float | None = None) -> np.ndarray:
    """Random values smoothly interpolated between cells of so many pixels, (H, W) float32, about N(0, 1)."""
    cell_x = cell_y if cell_x is None else cell_x
    rows, columns = int(height / cell_y) + 3, int(width / cell_x) + 3
    grid = rng.standard_normal((rows, columns), dtype=np.float32)
    big = cv2.resize(
        grid,
        (max(width, int(columns * cell_x)), max(height, int(rows * cell_y))),
        interpolation=cv2.INTER_CUBIC,
    )
    y, x = (big.shape[0] - height) // 2, (big.shape[1] - width) // 2
    return big[y : y + height, x : x + width]


def fractal_noise(rng: Rng, height: int, width: int, cell: float, octaves: int = 3) -> np.ndarray:
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        total += smooth_noise(rng, height, width, max(cell / 2**octave, 1.0)) / 2**octave
    return total / 1.3


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB (3,) in 0..1 of a hue in degrees."""
    k = (np.array([5.0, 3.0, 1.0]) + hue / 60.0) % 6.0
    return (value - value * saturation * np.clip(np.minimum(k, 4 - k), 0, 1)).astype(np.float32)


# hue, saturation and value ranges of the natural look; half of all regions take any hue instead
NATURAL = {
    'sky': ((185, 235), (0.1, 0.65), (0.55, 1.0)),
    'water': ((170, 230), (0.2, 0.75), (0.25, 0.8)),
    'grass': ((60, 140), (0.3, 0.8), (0.25, 0.75)),
    'sand': ((25, 50), (0.15, 0.55), (0.55, 0.95)),
    'road': ((0, 360), (0.0, 0.15), (0.2, 0.65)),
    'brick': ((-5, 30), (0.3, 0.75), (0.35, 0.8)),
    'wood': ((15, 40), (0.3, 0.7), (0.3, 0.8)),
}


def _base_colour(rng: Rng, name: str) -> np.ndarray:
    hue, saturation, value = NATURAL[name]
    if rng.random() < 0.5:
        return hsv(rng.uniform(0, 360), rng.uniform(0.0, 0.75), rng.uniform(0.2, 0.95))
    return hsv(rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value))


def _tint(rng: Rng, amount: np.ndarray, colour: np.ndarray, contrast: float) -> np.ndarray:
    """A grey pattern in about [-1, 1] as shades of a colour, with a second hue where the pattern is bright."""
    second = np.clip(colour + rng.uniform(-0.12, 0.12, 3).astype(np.float32), 0, 1)
    mix = np.clip(amount * 0.5 + 0.5, 0, 1)[..., None]
    return (colour * (1 - mix) + second * mix) * (1 + contrast * amount)[..., None]


def _sky(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    gradient = np.linspace(0.9, -0.9, h, dtype=np.float32)[:, None] * rng.choice([-1.0, 1.0])
    clouds = np.clip(smooth_noise(rng, h, w, 14 * s, 34 * s) + 0.4 * smooth_noise(rng, h, w, 6 * s, 14 * s), 0, 2)
    return gradient * rng.uniform(0.4, 1.0) + clouds * rng.uniform(0.3, 1.0), 0.28


def _water(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    y = np.arange(h, dtype=np.float32)[:, None] / s
    phase = y * rng.uniform(0.9, 1.5) + 1.6 * smooth_noise(rng, h, w, 9 * s, 22 * s)
    waves = np.sin(phase) * (0.6 + 0.4 * smooth_noise(rng, h, w, 12 * s, 20 * s))
    return waves + 0.5 * np.clip(np.sin(phase * 0.47 + 1) - 0.6, 0, 1) * 2, 0.22


def _grass(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    blades = smooth_noise(rng, h, w, 5 * s, 1.1 * s) + 0.7 * smooth_noise(rng, h, w, 9 * s, 1.8 * s)
    return 0.75 * blades + 0.25 * smooth_noise(rng, h, w, 20 * s), 0.3


def _sand(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    grain = rng.standard_normal((h, w), dtype=np.float32)
    return 0.65 * grain + 0.6 * fractal_noise(rng, h, w, 18 * s, 2), 0.13


def _road(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    coarse = 0.25 * smooth_noise(rng, h, w, 26 * s)
    cracks = -1.8 * (np.abs(smooth_noise(rng, h, w, 15 * s)) < 0.045)
    dashes = np.zeros((h, w), np.float32)
    period, duty = rng.uniform(14, 22) * s, rng.uniform(0.4, 0.6)
    offset, angle = rng.uniform(0, 40 * s), rng.uniform(-0.5, 0.5)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    line = np.abs((across + offset) % (42 * s) - 21 * s) < 1.3 * s
    dashes[line & ((along % period) < duty * period)] = 2.4
    return coarse + cracks + dashes, 0.27


def _brick(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    height, width = rng.uniform(6, 9) * s, rng.uniform(13, 19) * s
    y, x = np.mgrid[:h, :w].astype(np.float32)
    y = y + rng.uniform(0, height)
    row = (y // height).astype(int)
    x = x + rng.uniform(0, width) + (row % 2) * width / 2
    column = (x // width).astype(int)
    shade = rng.standard_normal((row.max() + 1, column.max() + 1)).astype(np.float32)[row, column]
    mortar = (y % height < 1.2 * s) | (x % width < 1.2 * s)
    pattern = 0.45 * shade + 0.2 * rng.standard_normal((h, w), dtype=np.float32)
    return np.where(mortar, rng.choice([-1.7, 1.7]), pattern), 0.27


def _wood(rng: Rng, h: int, w: int, s: float) -> tuple[np.ndarray, float]:
    vertical = rng.random() < 0.5
    h, w = (w, h) if vertical else (h, w)
    y = np.arange(h, dtype=np.float32)[:, None] / s
    warp = 2.2 * smooth_noise(rng, h, w, 8 * s, 55 * s)
    plank = rng.uniform(13, 20)
    index = ((y + rng.uniform(0, plank)) // plank).astype(int)
    shade = rng.standard_normal(index.max() + 1).astype(np.float32)[index]
    rings = np.sin((y + warp) * rng.uniform(1.3, 1.9) + 2.5 * shade)
    seam = ((y + 0.0) // plank != (y - 1.1) // plank) * -1.2
    pattern = 0.55 * rings + 0.45 * shade + seam + 0.3 * smooth_noise(rng, h, w, 1.2 * s, 18 * s)
    return (pattern.T if vertical else pattern), 0.24


_DRAW = dict(sky=_sky, water=_water, grass=_grass, sand=_sand, road=_road, brick=_brick, wood=_wood)


def texture(rng: Rng, name: str, height: int, width: int) -> np.ndarray:
    """A texture of the named stuff: (H, W, 3) float32, RGB about 0..1. Its features scale with the picture."""
    scale = max(min(height, width) / 128.0, 0.5)
    pattern, contrast = _DRAW[name](rng, height, width, scale)
    colour = _base_colour(rng, name)
    return _tint(rng, pattern.astype(np.float32), colour, contrast * rng.uniform(0.75, 1.25))
