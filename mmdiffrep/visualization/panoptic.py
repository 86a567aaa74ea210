"""Panoptic results over pictures: a colour a segment, its name on it, a legend below. Arrays in, arrays out."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from .canvas import INK, PAPER, legend, text_picture
from .overlays import overlay

SIDES = (
    640,
    1600,
)  # pixels of the longer side: smaller pictures have no room for words, larger ones are slow to look at
GOLDEN = 0.6180339887  # turns of the hue from a colour to the next: never near one of the last few
SHADES = ((0.75, 0.95), (0.95, 0.70), (0.45, 1.00))  # saturation and value, in turn
UNSEEN = '* not among the classes trained on'
MOST_HIDDEN = 0.5  # a label that hides more of its segment than this share stands beside it
LETTERS = dict(label=24, legend=28)  # of a name; the rest is cut off


def segment_colours(count: int) -> np.ndarray:
    """Colours (count, 3) uint8 RGB, all different for up to 500 segments, neighbours in the list very different."""
    colours = [
        colorsys.hsv_to_rgb((0.02 + i * GOLDEN) % 1, *SHADES[i % len(SHADES)]) for i in range(count)
    ]
    return (np.asarray(colours).reshape(count, 3) * 255).round().astype(np.uint8)


def draw_panoptic(
    image: np.ndarray,
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    opacity: float = 0.5,
    side: int | None = None,
    labels: bool = True,
    key: bool = True,
    colours: Sequence[Sequence[int]] | np.ndarray | None = None,
) -> np.ndarray:
    """A picture (H, W, 3) uint8 RGB with its segments: (h, w, 3) uint8.

    Args:
        ids: of the segments (H, W), 0 where there is none: there the picture stays as it is.
        segments: ``dict(id=, name=)``, and where known ``score`` (0 to 1) and ``seen`` (False: marked in the legend).
        opacity: of the colours, 0 to 1.
        side: the longer side is resized to this many pixels; default: as it is, but between 640 and 1600.
        labels: write names into the picture. A label that would hide a small segment stands beside it, in its colour; one for
            which there is no room is left to the legend: no two overlap.
        key: a legend below.
        colours: RGB, one a segment; default: :func:`segment_colours`.

    Raises:
        ValueError: shapes or kinds do not fit, or an id has no segment, or two.
    """
    places = _places(image, ids, segments)
    if colours is None:
        colours = segment_colours(len(segments))
    colours = np.asarray(colours, np.uint8).reshape(-1, 3)
    if len(colours) != len(segments):
        raise ValueError(f'{len(colours)} colours were given for {len(segments)} segments')
    side = side or min(max(SIDES[0], *ids.shape), SIDES[1])
    picture = overlay(image, places, colours, opacity, side)  # type: ignore[arg-type]
    if labels:
        _write_labels(picture, places, segments, colours)
    return _with_legend(picture, places, segments, colours) if key else picture


def _places(
    image: np.ndarray, ids: np.ndarray, segments: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Each pixel's place among the segments (H, W) int32, -1 for none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f'image is {image.dtype} {image.shape}; needed: uint8 (H, W, 3), red, green, blue'
        )
    if ids.shape != image.shape[:2] or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"ids are {ids.dtype} {ids.shape}; needed: whole numbers of the image's size, {image.shape[:2]}"
        )
    place = {int(segment['id']): k for k, segment in enumerate(segments)}
    if len(place) != len(segments) or 0 in place:
        raise ValueError(
            f'segments have ids {[s["id"] for s in segments][:8]}; needed: different ones, none 0'
        )
    found, inverse = np.unique(ids, return_inverse=True)
    unknown = [int(i) for i in found if i != 0 and int(i) not in place]
    if unknown:
        raise ValueError(f'ids {unknown[:5]} are in the picture and not among the segments')
    return np.asarray([place.get(int(i), -1) for i in found], np.int32)[inverse].reshape(ids.shape)


# ---- labels ----------------------------------------------------------------------------------------------------------


def label_text(segment: Mapping[str, Any], letters: int) -> str:
    """``'red star 0.87'``, the name no longer than a number of letters."""
    name, score = str(segment['name']), segment.get('score')
    if len(name) > letters:
        name = name[: letters - 1].rstrip() + '…'
    return name + (f' {score:.2f}' if score is not None else '')


def _write_labels(
    picture: np.ndarray,
    places: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    colours: np.ndarray,
) -> None:
    """Smaller segments first: they have the fewest places for a label."""
    height, width = picture.shape[:2]
    # exact in single precision, which resize knows
    drawn: np.ndarray = cv2.resize(
        places.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST
    ).astype(np.int32)
    areas = np.bincount(drawn.ravel() + 1, minlength=len(segments) + 1)[1:]
    taken = np.zeros((height, width), np.uint8)
    for k in np.argsort(areas, kind='stable'):
        if not areas[k]:
            continue
        box = _label(label_text(segments[k], LETTERS['label']), colours[k], _text_size(picture))
        where = place_label(drawn == k, box.shape[:2], taken)
        if where is not None:
            y, x = where
            picture[y : y + box.shape[0], x : x + box.shape[1]] = box
            taken[y : y + box.shape[0], x : x + box.shape[1]] = 1


def _text_size(picture: np.ndarray) -> float:
    """Points."""
    return float(np.clip(max(picture.shape[:2]) / 75, 8, 14))


def _label(text: str, colour: np.ndarray, size: float) -> np.ndarray:
    """Text on a segment's colour in black or white, whichever is easier to read: (h, w, 3)."""
    ink = (0, 0, 0) if luminance(colour) > 0.179 else (255, 255, 255)  # 4.5 : 1 at the least
    paper = tuple(int(c) for c in colour)
    drawn = text_picture(text, size, True, ink=ink, paper=paper)
    drawn = cv2.copyMakeBorder(drawn, 1, 1, 3, 3, cv2.BORDER_CONSTANT, value=paper)
    return cv2.copyMakeBorder(drawn, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=ink)


def luminance(colour: Sequence[int] | np.ndarray) -> float:
    """Relative luminance of sRGB, 0 to 1 (WCAG 2.1)."""
    c = np.asarray(colour, np.float64) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def place_label(
    mask: np.ndarray, size: tuple[int, int], taken: np.ndarray
) -> tuple[int, int] | None:
    """The top left corner (y, x) for a label, inside the picture; None where there is no room.

    Args:
        mask: the segment (H, W), bool, not empty.
        size: height and width of the label, pixels.
        taken: (H, W) uint8, 1 where other labels stand.
    """
    (h, w), (height, width) = size, mask.shape
    if h > height or w > width:
        return None
    # around the segment, so that a small one in a large picture is quick
    x, y, across, down = cv2.boundingRect(mask.astype(np.uint8))
    top, left = max(0, y - h), max(0, x - w)
    window = slice(top, y + down + h), slice(left, x + across + w)
    segment: np.ndarray = mask[window].astype(np.uint8)
    covered, overlap = _box_sums(segment, size), _box_sums(taken[window], size)
    # how far within the segment the label's middle is
    depth = cv2.distanceTransform(np.pad(segment, 1), cv2.DIST_L2, 3)[1 + h // 2 :, 1 + w // 2 :]
    depth = depth[: covered.shape[0], : covered.shape[1]]
    allowed = (depth > 0) & (covered <= MOST_HIDDEN * mask.sum()) & (overlap == 0)
    if not allowed.any():
        return _beside(mask, size, taken)
    # half of the label beside a thin segment is worse than a place further from its middle
    merit = covered / (h * w) + 0.5 * depth / depth.max()
    best = np.unravel_index(np.where(allowed, merit, -1).argmax(), merit.shape)
    return top + int(best[0]), left + int(best[1])


def _beside(mask: np.ndarray, size: tuple[int, int], taken: np.ndarray) -> tuple[int, int] | None:
    """Below, above, right or left of a segment, whichever is free and hides the least of it."""
    (h, w), (height, width) = size, mask.shape
    x, y, across, down = cv2.boundingRect(mask.astype(np.uint8))
    middle_y, middle_x = y + (down - h) // 2, x + (across - w) // 2
    around = [(y + down, middle_x), (y - h, middle_x), (middle_y, x + across), (middle_y, x - w)]
    found = []
    for top, left in around:
        top, left = min(max(top, 0), height - h), min(max(left, 0), width - w)
        part = slice(top, top + h), slice(left, left + w)
        hidden = int(mask[part].sum())
        if not taken[part].any() and hidden <= MOST_HIDDEN * mask.sum():
            found.append((hidden, top, left))
    return min(found, key=lambda place: place[0])[1:] if found else None


def _box_sums(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sums over boxes of a size, by their top left corners: (H - h + 1, W - w + 1)."""
    (h, w), total = size, cv2.integral(values)
    return total[h:, w:] - total[:-h, w:] - total[h:, :-w] + total[:-h, :-w]


# ---- legend ----------------------------------------------------------------------------------------------------------


def _with_legend(
    picture: np.ndarray,
    places: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    colours: np.ndarray,
) -> np.ndarray:
    """Names, scores and shares of the picture's area, the largest first."""
    areas = np.bincount(places.ravel() + 1, minlength=len(segments) + 1)[1:]
    order = np.argsort(-areas, kind='stable')
    size, unseen = _text_size(picture), [s.get('seen') is False for s in segments]
    names = [
        f'{label_text(segments[k], LETTERS["legend"])}, {100 * areas[k] / places.size:.1f} %{" *" if unseen[k] else ""}'
        for k in order
    ]
    if names:
        lines = [legend(names, colours[order], picture.shape[1], size)]  # type: ignore[arg-type]
    else:
        lines = [text_picture('no segments', size)]
    if any(unseen):
        lines.append(text_picture(UNSEEN, size * 0.9, ink=INK))
    gap, width = round(size), max(part.shape[1] for part in [picture, *lines])
    rows = []
    for part in [picture, *lines]:
        below = 0 if part is lines[-1] else gap
        rows.append(
            cv2.copyMakeBorder(
                part, 0, below, 0, width - part.shape[1], cv2.BORDER_CONSTANT, value=PAPER
            )
        )
    return np.concatenate(rows)
