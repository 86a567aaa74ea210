"""Panoptic results as COCO keeps them: a PNG whose colours are segment ids, and a JSON that says what the segments are.

The format: https://cocodataset.org/#format-results, section 4. ``id = R + 256 G + 65536 B``, 0 is nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

LARGEST = 256**3 - 1


def write_panoptic_png(path: str | Path, ids: Tensor | np.ndarray) -> None:
    """Segment ids (H, W) as a PNG; the file appears complete or not at all.

    Raises:
        ValueError: the ids are no whole numbers of two dimensions, or do not fit into 24 bits.
    """
    array = ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.ndim != 2 or array.dtype.kind not in 'iu' or not array.size:
        raise ValueError(
            f'segment ids are {array.dtype} {array.shape}; needed: whole numbers (H, W)'
        )
    if array.min() < 0 or array.max() > LARGEST:
        raise ValueError(
            f'segment ids from {array.min()} to {array.max()} do not fit; allowed: 0 (nothing) to {LARGEST}'
        )
    colours = np.stack([array % 256, array // 256 % 256, array // 65536], -1).astype(np.uint8)
    _replace(path, lambda new: Image.fromarray(colours).save(new, format='PNG'))


def read_panoptic_png(path: str | Path) -> np.ndarray:
    """Segment ids (H, W), int32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no picture in colours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path}: no such file (panoptic PNG)')
    with Image.open(path) as picture:
        if picture.mode not in ('RGB', 'RGBA'):
            raise ValueError(
                f"{path} has mode {picture.mode!r}; a panoptic PNG is in colours, 'RGB', which make up its segments' ids"
            )
        colours = np.asarray(picture).astype(np.int32)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def coco_segments(
    segments: Sequence[Mapping[str, Any]], category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """``merge_panoptic``'s segments as COCO's ``segments_info``: category_id instead of a place in the vocabulary.

    Args:
        category_ids: the data set's id of each class. None: its place.

    Raises:
        ValueError: a segment's category is not among them.
    """
    found = []
    for segment in segments:
        category = segment['category']
        if category_ids is not None and not 0 <= category < len(category_ids):
            raise ValueError(
                f'segment {segment["id"]} has category {category}; allowed: 0 to {len(category_ids) - 1}, places among the '
                f'{len(category_ids)} category_ids'
            )
        entry = dict(
            id=int(segment['id']),
            category_id=int(category if category_ids is None else category_ids[category]),
            iscrowd=int(segment.get('iscrowd', 0)),
        )
        for key, kind in dict(area=int, bbox=list, score=float, isthing=int).items():
            if key in segment:
                entry[key] = kind(segment[key])
        found.append(entry)
    return found


def write_panoptic_json(
    path: str | Path,
    annotations: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    is_thing: Sequence[bool],
    category_ids: Sequence[int] | None = None,
    images: Sequence[Mapping[str, Any]] = (),
) -> None:
    """The JSON beside the PNGs; the file appears complete or not at all.

    Args:
        annotations: ``dict(image_id=, file_name=<of the PNG>, segments=<merge_panoptic's>)`` each.
        names, is_thing: of the vocabulary's classes.
        category_ids: see :func:`coco_segments`.
        images: COCO's entries: id, file_name, height, width.

    Raises:
        ValueError: counts differ, or a segment's category is unknown.
    """
    numbers = list(range(len(names)) if category_ids is None else category_ids)
    if not len(names) == len(is_thing) == len(numbers):
        raise ValueError(
            f'{len(names)} names, {len(is_thing)} is_thing and {len(numbers)} category_ids; needed: as many of each'
        )
    content = dict(
        images=[dict(image) for image in images],
        annotations=[
            dict(
                image_id=entry['image_id'],
                file_name=str(entry['file_name']),
                segments_info=coco_segments(entry['segments'], numbers),
            )
            for entry in annotations
        ],
        categories=[
            dict(id=int(number), name=name, isthing=int(thing))
            for number, name, thing in zip(numbers, names, is_thing)
        ],
    )
    text = json.dumps(content)
    _replace(path, lambda new: Path(new).write_text(text, encoding='utf-8'))


def _replace(path: str | Path, write: Callable[[Path], Any]) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.{os.getpid()}.new')
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
