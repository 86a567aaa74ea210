"""Drawing one ToyScenes picture: stuff regions, overlapping things, light."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from .classes import COLOURS, HELD_OUT, PATTERNS, SHAPES, STUFF
from .textures import fractal_noise, hsv, smooth_noise, texture

Rng = np.random.Generator
SPLITS = ('train', 'val', 'val_heldout')


@dataclass
class Thing:
    """A shape in the picture. ``keypoints`` are (x, y) in pixels: the centre, then the outline's corners."""

    shape: str
    colour: str
    pattern: str
    mask: np.ndarray  # (H, W) bool, what is visible of it
    keypoints: np.ndarray  # (K, 2) float32

    @property
    def name(self) -> str:
        return f'{self.colour} {self.shape}'

    @property
    def phrase(self) -> str:
        return self.name if self.pattern == 'plain' else f'{self.pattern} {self.name}'


@dataclass
class Scene:
    image: np.ndarray  # (H, W, 3) uint8 RGB
    stuff: np.ndarray  # (H, W) uint8, index into STUFF, also behind things
    things: list[Thing] = field(default_factory=list)

    def semantic(self) -> np.ndarray:
        """(H, W) uint8, index into SEMANTIC_CLASSES."""
        labels = self.stuff.copy()
        for thing in self.things:
            labels[thing.mask] = len(STUFF) + SHAPES.index(thing.shape)
        return labels

    def caption(self) -> str:
        area = np.bincount(self.semantic().ravel(), minlength=len(STUFF))[: len(STUFF)]
        places = [STUFF[i] for i in np.argsort(-area, kind='stable') if area[i] > 0]
        things = [_article(thing.phrase) for thing in self.things]
        what = ', '.join(things[:-1]) + (' and ' if len(things) > 1 else '') + things[-1] if things else ''
        where = ' and '.join(places)
        return f'{what} in front of {where}' if what else where


def _article(phrase: str) -> str:
    return f'{"an" if phrase[0] in "aeiou" else "a"} {phrase}'


def scene_rng(seed: int, index: int, split: str = 'train') -> Rng:
    """The random numbers of one picture, independent of every other picture, process and order."""
    if split not in SPLITS:
        raise ValueError(f'split {split!r} is unknown; allowed: {SPLITS}')
    return np.random.Generator(np.random.PCG64([seed, SPLITS.index(split), index]))


def generate_scene(
    seed: int,
    index: int = 0,
    size: tuple[int, int] = (128, 128),
    split: str = 'train',
    max_things: int = 6,
) -> Scene:
    """Picture number ``index`` of a split; the same arguments always give the same pixels.

    Args:
        size: (height, width), at least 16 each.
        split: in ``train`` and ``val`` the held-out colour–shape combinations never occur; in ``val_heldout`` about half of the
            things are held-out ones.
    """
    height, width = size
    if min(height, width) < 16:
        raise ValueError(f'size {size} is too small to draw in; allowed: at least 16 × 16')
    rng = scene_rng(seed, index, split)
    canvas, stuff = _draw_stuff(rng, height, width)
    things: list[Thing] = []
    for _ in range(int(rng.integers(1, max_things + 1)) if max_things else 0):
        things.append(_draw_thing(rng, canvas, split))
        for earlier in things[:-1]:
            earlier.mask &= ~things[-1].mask
    things = [thing for thing in things if thing.mask.any()]
    return Scene(light(rng, canvas), stuff, things)


# ---- stuff ------------------------------------------------------------------------------------------------------


def _draw_stuff(rng: Rng, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    regions = _regions(rng, height, width)
    count = int(regions.max()) + 1
    names = _choose_stuff(rng, count)
    canvas = np.zeros((height, width, 3), np.float32)
    stuff = np.zeros((height, width), np.uint8)
    for region, name in enumerate(names):
        where = regions == region
        if not where.any():
            continue
        canvas[where] = texture(rng, name, height, width)[where]
        stuff[where] = STUFF.index(name)
    return canvas, stuff


def _choose_stuff(rng: Rng, count: int) -> list[str]:
    """Different textures; a sky, if there is one, is on top (region 0)."""
    names = [str(name) for name in rng.choice(STUFF[1:], count, replace=False)]
    if rng.random() < 0.5:
        names[0] = 'sky'
    return names


def _regions(rng: Rng, height: int, width: int) -> np.ndarray:
    """(H, W) region numbers, counted from the top."""
    y = np.arange(height, dtype=np.float32)[:, None] / height
    x = np.arange(width, dtype=np.float32)[None, :] / width
    count = int(rng.integers(2, 5))
    if rng.random() < 0.25:  # islands
        fields = np.stack([smooth_noise(rng, height, width, max(height, width) / 2.2) for _ in range(count)])
        fields[0] += 1.2 - 2.4 * y
        return fields.argmax(0)
    regions = np.zeros((height, width), np.int64)
    levels = np.sort(rng.uniform(0.15, 0.9, count - 1))
    for level in levels:
        slope, bend = rng.normal(0, 0.12), rng.normal(0, 0.05)
        wiggle = smooth_noise(rng, 4, width, 4, width / rng.uniform(2, 6))[2]
        line = level + slope * (x - 0.5) + bend * wiggle
        regions += y > line
    if rng.random() < 0.25:  # a way that runs into the picture
        centre, spread = rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.35)
        lean, top = rng.normal(0, 0.4), float(levels[0])
        depth = np.clip((y - top) / max(1 - top, 0.1), 0, 1)
        way = (np.abs(x - centre - lean * depth) < 0.03 + spread * depth) & (y > top)
        regions[way] = regions.max() + 1
    return regions


# ---- things -----------------------------------------------------------------------------------------------------


def _outline(shape: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Corners (K, 2) on about the unit circle, and the hole's outline."""

    def circle(radius: float, n: int) -> np.ndarray:
        angle = np.arange(n) * 2 * np.pi / n - np.pi / 2
        return radius * np.stack([np.cos(angle), np.sin(angle)], 1)

    if shape == 'disc':
        return circle(0.9, 48), None
    if shape == 'ring':
        return circle(0.95, 48), circle(0.5, 36)
    if shape == 'square':
        return circle(1.05, 4) @ _rotation(np.pi / 4), None
    if shape == 'triangle':
        return circle(1.1, 3), None
    if shape == 'star':
        corners = np.empty((10, 2))
        corners[0::2], corners[1::2] = circle(1.1, 5), circle(0.46, 5) @ _rotation(np.pi / 5)
        return corners, None
    a, b = 0.34, 1.0
    return np.array([[-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a]]), None  # fmt: skip


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, s], [-s, c]])


def _choose_thing(rng: Rng, split: str) -> tuple[str, str]:
    if split == 'val_heldout' and rng.random() < 0.5:
        colour, shape = str(rng.choice(HELD_OUT)).split()
        return colour, shape
    while True:
        colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
        if f'{colour} {shape}' not in HELD_OUT:
            return colour, shape


def _draw_thing(rng: Rng, canvas: np.ndarray, split: str) -> Thing:
    """Paint a shape into ``canvas`` (H, W, 3), in place."""
    height, width = canvas.shape[:2]
    colour, shape = _choose_thing(rng, split)
    pattern = str(rng.choice(PATTERNS, p=[0.4, 0.2, 0.2, 0.2]))
    radius = min(height, width) * rng.uniform(0.09, 0.24)
    centre = np.array([rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height])
    turn = _rotation(rng.uniform(0, 2 * np.pi))
    stretch = np.diag([1.0, rng.uniform(0.75, 1.0)])
    outline, hole = _outline(shape)
    to_picture = radius * stretch @ turn
    outline = outline @ to_picture + centre
    alpha = _coverage(height, width, outline, None if hole is None else hole @ to_picture + centre)

    _shadow(rng, canvas, alpha, radius)
    box = cv2.boundingRect((alpha > 0).astype(np.uint8))  # x, y, w, h
    part = (slice(box[1], box[1] + box[3]), slice(box[0], box[0] + box[2]))
    paint = _paint(rng, box, colour, pattern, centre, to_picture)
    canvas[part] += (paint - canvas[part]) * alpha[part][..., None]
    corners = outline[:: len(outline) // 4] if shape in ('disc', 'ring') else outline
    # a ring has no surface at its centre: the middle of its band stands for it
    middle = centre if hole is None else (outline[0] + (hole @ to_picture + centre)[0]) / 2
    inner = centre + (corners - centre) * 0.88
    keypoints = np.concatenate([middle[None], inner]).astype(np.float32)
    return Thing(shape, colour, pattern, alpha >= 0.5, keypoints)


def _coverage(height: int, width: int, outline: np.ndarray, hole: np.ndarray | None) -> np.ndarray:
    """Share of each pixel inside the outline, (H, W) float32, by drawing at four times the size."""
    scale, shift = 4, 4
    low = np.floor(np.clip(outline.min(0) - 2, 0, [width - 1, height - 1])).astype(int)
    high = np.ceil(np.clip(outline.max(0) + 2, low + 1, [width, height])).astype(int)
    size = high - low
    big = np.zeros((size[1] * scale, size[0] * scale), np.uint8)

    def fill(points: np.ndarray, value: int) -> None:
        # a pixel's centre is at +0.5
        local = ((points - low + 0.5) * scale - 0.5) * 2**shift
        cv2.fillPoly(big, [np.round(local).astype(np.int32)], value, shift=shift)

    fill(outline, 255)
    if hole is not None:
        fill(hole, 0)
    alpha = np.zeros((height, width), np.float32)
    small = cv2.resize(big, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA)
    alpha[low[1] : high[1], low[0] : high[0]] = small.astype(np.float32) / 255
    return alpha


def _paint(
    rng: Rng,
    box: tuple[int, int, int, int],
    colour: str,
    pattern: str,
    centre: np.ndarray,
    to_picture: np.ndarray,
) -> np.ndarray:
    """The thing's surface over a box (x, y, w, h): its colour, a pattern in its own coordinates, shading."""
    left, top, width, height = box
    hue, saturation, value = COLOURS[colour]
    base = hsv(hue + rng.normal(0, 5), np.clip(saturation + rng.normal(0, 0.08), 0, 1), np.clip(value + rng.normal(0, 0.1), 0.3, 1))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    local = np.stack([x + left - centre[0], y + top - centre[1]], -1) @ np.linalg.inv(to_picture).astype(np.float32)
    u, v = local[..., 0], local[..., 1]
    frequency = rng.uniform(3.5, 5.5)
    if pattern == 'striped':
        ink = np.sin(u * frequency * 2) > 0.1
    elif pattern == 'dotted':
        ink = ((u * frequency * 0.7) % 1 - 0.5) ** 2 + ((v * frequency * 0.7) % 1 - 0.5) ** 2 < 0.07
    elif pattern == 'checked':
        ink = (np.floor(u * frequency * 0.6) + np.floor(v * frequency * 0.6)) % 2 == 0
    else:
        ink = np.zeros((height, width), bool)
    # the pattern's second colour is a shade of the same: the name of the colour stays true
    other = base * 0.45 if rng.random() < 0.5 else 1 - (1 - base) * 0.4
    surface = np.where(ink[..., None], other, base)
    angle = rng.uniform(0, 2 * np.pi)
    shading = 1 + 0.22 * (u * np.cos(angle) + v * np.sin(angle)).clip(-1.2, 1.2)
    return (surface * shading[..., None]).astype(np.float32)


def _shadow(rng: Rng, canvas: np.ndarray, alpha: np.ndarray, radius: float) -> None:
    offset = radius * rng.uniform(0.05, 0.25, 2) * np.array([rng.choice([-1, 1]), 1])
    move = np.array([[1, 0, offset[0]], [0, 1, offset[1]]], np.float32)
    strength, sigma = rng.uniform(0.25, 0.5), max(radius * 0.12, 0.6)
    soft = cv2.GaussianBlur(cv2.warpAffine(alpha, move, alpha.shape[::-1]), (0, 0), sigma)
    canvas *= 1 - strength * soft[..., None]


def light(rng: Rng, canvas: np.ndarray) -> np.ndarray:
    """Illumination, tint, blur and sensor noise: (H, W, 3) float -> uint8."""
    height, width = canvas.shape[:2]
    field_ = fractal_noise(rng, height, width, max(height, width) * 0.7, 1)
    gain = rng.uniform(0.65, 1.2) * (1 + 0.1 * field_)
    tint = 1 + rng.normal(0, 0.09, 3)
    picture = (canvas * gain[..., None] * tint).astype(np.float32)
    if rng.random() < 0.5:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 0.7))
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * rng.uniform(0.003, 0.025)
    return (np.clip(picture + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
