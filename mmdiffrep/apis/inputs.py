"""What users hand in to be looked at: images from paths, folders and arrays, and a vocabulary for all or each."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiffrep.datasets.images import SUFFIXES
from mmdiffrep.openvocab.vocabulary import Vocabulary

ORDERS = ('bgr', 'rgb')


def gather(images: Any, channel_order: str = 'bgr') -> tuple[list[Path | np.ndarray], bool]:
    """Files and arrays in BGR, one an image, and whether a single image was given.

    Args:
        images: a file; a folder, of which the images in it are taken in the order of their names, without its subfolders; an array
            (H, W, 3) uint8; or a list of such.
        channel_order: of arrays.

    Raises:
        FileNotFoundError: no such file or folder; the nearest names beside it are listed.
        ValueError: no image, an array of another kind, or something else altogether.
    """
    if channel_order not in ORDERS:
        raise ValueError(f'channel_order={channel_order!r} is unknown; allowed: {ORDERS}')
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError('an empty list of images: give at least one file, folder or array')
        return [item for one in images for item in _one(one, channel_order)], False
    items = _one(images, channel_order)
    return items, isinstance(images, np.ndarray) or items == [_path(images)]


def _one(image: Any, channel_order: str) -> list[Path | np.ndarray]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f'an array is {image.dtype} {image.shape}; needed: uint8 (H, W, 3), in the order that channel_order says'
            )
        return [np.ascontiguousarray(image if channel_order == 'bgr' else image[..., ::-1])]
    if not isinstance(image, (str, Path)):
        raise ValueError(
            f'a {type(image).__name__} is no image; give a file, a folder, an array (H, W, 3), or a list of these'
        )
    path = _path(image)
    if path.is_dir():
        return list(_of_folder(path))
    if not path.is_file():
        raise FileNotFoundError(f'image {str(image)!r}: no such file or folder.{_neighbours(path)}')
    return [path]


def _path(image: str | Path) -> Path:
    return Path(image).expanduser()


def _of_folder(folder: Path) -> list[Path]:
    # macOS puts files like ._name.jpg beside the images, which are none
    found = sorted(
        entry
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith('.') and entry.is_file()
    )
    if not found:
        below = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())[:5]
        hint = f' Its subfolders are not looked into: {below}' if below else ''
        raise ValueError(
            f'folder {str(folder)!r} has no image; recognised endings: {sorted(SUFFIXES)}.{hint}'
        )
    return found


def _neighbours(path: Path) -> str:
    parent = path.absolute().parent
    if not parent.is_dir():
        return f' There is no folder {parent}'
    names = [entry.name for entry in parent.iterdir()]
    near = difflib.get_close_matches(path.name, names, 3, 0.5)
    return f' Nearest in {parent}: {near}' if near else f' {parent} has nothing of a similar name'


def vocabularies(given: Any, count: int) -> list[Vocabulary | None]:
    """A vocabulary for each of ``count`` images; None: the model's own.

    Args:
        given: None, anything that :meth:`Vocabulary.parse` takes, or a list with one an image. As a list of names is a vocabulary
            itself, a list is one an image where it holds a :class:`Vocabulary` or a string with ``';'``.

    Raises:
        ValueError: they are not as many as the images, or one cannot be read.
        FileNotFoundError: a vocabulary's file is not there.
    """
    if given is None:
        return [None] * count
    if not isinstance(given, (list, tuple)) or not any(map(_is_whole, given)):
        return [Vocabulary.parse(given)] * count
    if len(given) != count:
        raise ValueError(
            f'{len(given)} vocabularies were given for {count} images: give one for all, or one for each'
        )
    return _parsed(given)


def _is_whole(item: Any) -> bool:
    """Whether it can be a vocabulary, and no category of one."""
    return isinstance(item, Vocabulary) or (isinstance(item, str) and ';' in item)


def _parsed(given: Sequence[Any]) -> list[Vocabulary | None]:
    return [Vocabulary.parse(item) for item in given]
