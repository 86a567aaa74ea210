"""What is in a ToyScenes picture: names, palettes, categories. Plain data, no toolkit."""

from __future__ import annotations

STUFF = ('sky', 'water', 'grass', 'sand', 'road', 'brick', 'wood')
SHAPES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
PATTERNS = ('plain', 'striped', 'dotted', 'checked')
# hue in degrees, saturation and value in 0..1 about which a thing's colour varies
COLOURS = {
    'red': (2, 0.85, 0.85),
    'orange': (30, 0.9, 0.95),
    'yellow': (54, 0.85, 0.95),
    'green': (125, 0.75, 0.65),
    'blue': (218, 0.8, 0.8),
    'purple': (285, 0.65, 0.7),
}

# Semantic segmentation: textures and shapes, never colours.
SEMANTIC_CLASSES = STUFF + SHAPES
SEMANTIC_PALETTE = [
    [135, 206, 235], [40, 90, 200], [80, 180, 60], [225, 200, 130], [110, 110, 115], [170, 70, 50], [140, 100, 60],
    [255, 60, 60], [255, 160, 20], [250, 240, 60], [255, 120, 200], [160, 70, 220], [60, 230, 220],
]  # fmt: skip

# Panoptic segmentation: things are colour x shape; six combinations never occur in training. Every colour and every shape is
# missing from exactly one of them.
THINGS = tuple(f'{colour} {shape}' for colour in COLOURS for shape in SHAPES)
HELD_OUT = tuple(
    f'{colour} {SHAPES[(i + 3) % len(SHAPES)]}' for i, colour in enumerate(COLOURS)
)
THING_ID = {name: i + 1 for i, name in enumerate(THINGS)}
STUFF_ID = {name: len(THINGS) + 1 + i for i, name in enumerate(STUFF)}


def panoptic_categories() -> list[dict]:
    """COCO-panoptic ``categories``: 36 things, then the stuff."""
    things = [
        dict(id=THING_ID[name], name=name, isthing=1, supercategory=name.split()[1], color=[(37 * i) % 256, (91 * i + 60) % 256, (151 * i + 120) % 256])
        for i, name in enumerate(THINGS)
    ]  # fmt: skip
    stuff = [
        dict(id=STUFF_ID[name], name=name, isthing=0, supercategory='stuff', color=SEMANTIC_PALETTE[i])
        for i, name in enumerate(STUFF)
    ]  # fmt: skip
    return things + stuff
