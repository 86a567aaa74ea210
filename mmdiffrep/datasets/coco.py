"""COCO files of captions and of instances, and crops of what they describe."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from .images import decode

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


def read_coco(ann_file: str | Path, *keys: str) -> dict[str, Any]:
    """A COCO JSON file with ``images``, ``annotations`` and the other ``keys``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, lacks one of the lists, or names an image that it does not list.
    """
    path = Path(ann_file)
    if not path.is_file():
        raise FileNotFoundError(f'{ann_file}: no such file (annotations in COCO format)')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{ann_file} is not valid JSON: {error}') from error
    needed = ('images', 'annotations', *keys)
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing:
        raise ValueError(
            f'{ann_file} lacks {missing}: a COCO file with the lists {list(needed)} is needed'
        )
    known = {image['id'] for image in content['images']}
    lost = next((a for a in content['annotations'] if a.get('image_id') not in known), None)
    if lost is not None:
        raise ValueError(
            f'{ann_file}: an annotation belongs to image {lost.get("image_id")!r}, which is not among its {len(known)} images'
        )
    return content


def image_paths(content: Mapping[str, Any], img_dir: str | Path) -> dict[Any, str]:
    """Each image's id -> its file. FileNotFoundError where the folder or the first image is not there."""
    folder = Path(img_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f'img_dir={str(img_dir)!r}: no such folder')
    paths = {image['id']: str(folder / image['file_name']) for image in content['images']}
    first = next(iter(paths.values()), None)
    if first is not None and not Path(first).is_file():
        raise FileNotFoundError(
            f'{first}: no such file. Is img_dir={str(img_dir)!r} the folder of these annotations?'
        )
    return paths


@dataclass
class Object:
    """One annotation of an instances file."""

    path: str
    box: Box
    name: str  # its category
    attributes: dict[str, str]


def read_objects(
    ann_file: str | Path, img_dir: str | Path, min_side: int
) -> tuple[list[str], list[Object]]:
    """The categories' names, and the objects whose box is at least ``min_side`` pixels wide and high; no crowds.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_coco`, or an annotation without a box or of an unknown category.
    """
    content = read_coco(ann_file, 'categories')
    paths = image_paths(content, img_dir)
    names = {category['id']: category['name'] for category in content['categories']}
    found = []
    for annotation in content['annotations']:
        box, name = annotation.get('bbox'), names.get(annotation.get('category_id'))
        if box is None or name is None:
            raise ValueError(
                f'{ann_file}: annotation {annotation.get("id")} has bbox={box} and category_id={annotation.get("category_id")}; '
                f'needed is a box (x, y, width, height) and one of the {len(names)} categories'
            )
        if min(box[2:]) >= min_side and not annotation.get('iscrowd'):
            path = paths[annotation['image_id']]
            found.append(Object(path, tuple(box), name, annotation.get('attributes', {})))
    return list(names.values()), found


def checked_sources(
    sources: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    needed: Sequence[str],
    allowed: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One or several sources as dictionaries. ValueError where an entry is missing or unknown."""
    found = [dict(s) for s in ([sources] if isinstance(sources, Mapping) else sources)]
    for source in found:
        unknown = sorted(set(source) - {*needed, *allowed})
        missing = [key for key in needed if key not in source]
        if unknown or missing:
            raise ValueError(
                f'source {source} does not fit: it needs {list(needed)}'
                + (f', and may have {list(allowed)}' if allowed else '')
            )
    if not found:
        raise ValueError('sources is empty: give at least one')
    return found


def check_size(size: int, on_error: str = 'raise') -> None:
    if on_error not in ('raise', 'skip'):
        raise ValueError(f"on_error={on_error!r} is unknown; allowed: 'raise', 'skip'")
    if not isinstance(size, int) or size < 1:
        raise ValueError(
            f'size={size!r} does not fit: allowed is a whole number of pixels, at least 1'
        )


def read_image(path: str, on_error: str = 'raise') -> np.ndarray | None:
    """BGR (H, W, 3). What is no image is named: a ValueError, or with ``'skip'`` a warning and None."""
    file = Path(path)
    image = decode(file.read_bytes()) if file.is_file() else None
    if image is None:
        if on_error == 'raise':
            raise ValueError(
                f"{path} is not a readable image. Remove it, or set on_error='skip' to leave such images out"
            )
        warnings.warn(f'{path} is not a readable image; it is left out', stacklevel=3)
    return image


def square_crop(
    image: np.ndarray, box: Box, context: float = 1.0, shift: Sequence[float] = (0, 0)
) -> np.ndarray:
    """A square about a box, ``context`` times its longer side, moved by ``shift`` in that unit.

    Where it reaches over the picture's border, the last row or column is repeated.
    """
    x, y, w, h = box
    side = max(2, round(max(w, h) * context))
    left = round(x + w / 2 + shift[0] * max(w, h) - side / 2)
    top = round(y + h / 2 + shift[1] * max(w, h) - side / 2)
    rows = np.clip(np.arange(top, top + side), 0, image.shape[0] - 1)
    columns = np.clip(np.arange(left, left + side), 0, image.shape[1] - 1)
    return image[rows][:, columns]


def squashed(image: np.ndarray, size: int) -> np.ndarray:
    """The whole picture on a square; its aspect ratio changes."""
    if image.shape[:2] == (size, size):
        return image
    smaller = min(image.shape[:2]) > size
    return cv2.resize(
        image, (size, size), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) -> uint8 (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
