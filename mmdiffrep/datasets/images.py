"""ImageFolder: unlabelled images from folders and zip files, for generative pre-training."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS

from .archives import Archives

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'}


@DATASETS.register_module()
class ImageFolder(Dataset):
    """Random crops of images: ``dict(inputs=uint8 tensor (3, size, size), BGR)``, with ``label`` where it is asked for.

    Args:
        sources: folders or zip files, read recursively in the order of their names; or
            ``dict(path=…, short_side=(low, high), repeat=1)`` with settings of their own.
        size: side of the crop in pixels.
        short_side: an image's short side is resized to a number of pixels drawn from this range, then cropped; default:
            exactly ``size``.
        flip: mirror half of them.
        on_error: an unreadable image is named and ``'raise'``: fatal, or ``'skip'``: left out.
        cache: keep decoded images in memory (workers share it); else files are read each time.
        max_images: the first so many of each source.
        random: False gives centre crops without flips.
        labels: add ``label``, the number of the image's class among ``classes``: the names of the topmost folders, sorted.
        first, last: keep the images of each class from number ``first`` up to ``last`` (not included), in the order of their names:
            how a split is held out of a folder that has none. Without labels: of each source.
    """

    def __init__(
        self,
        sources: Sequence[str | Mapping[str, Any]] | str,
        size: int,
        short_side: Sequence[int] | None = None,
        flip: bool = True,
        on_error: str = 'raise',
        cache: bool = True,
        max_images: int | None = None,
        random: bool = True,
        labels: bool = False,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"on_error={on_error!r} is unknown; allowed: 'raise', 'skip'")
        if not isinstance(size, int) or size < 1:
            raise ValueError(f'size={size!r} does not fit: allowed is a whole number of pixels, at least 1')
        self.size, self.flip, self.on_error, self.random = size, flip, on_error, random
        self.items: list[tuple[str, str, tuple[int, int]]] = []  # (source, member, short side's range)
        self.index: list[int] = []  # what is drawn from: an item as often as it is repeated
        for source in [sources] if isinstance(sources, (str, Path, Mapping)) else sources:
            path, sides, repeat = _settings(source, short_side, size)
            members = _slice(list_images(path), first, last, labels)[:max_images]
            numbers = range(len(self.items), len(self.items) + len(members))
            self.index += [i for i in numbers for _ in range(repeat)]
            self.items += [(path, member, sides) for member in members]
        self._archives = Archives()
        self._images: list[np.ndarray | None] = [None] * len(self.items)
        self.classes: list[str] = []
        if labels:
            self.classes, self._labels = _class_labels([(path, member) for path, member, _ in self.items])
        if cache:
            self._fill_cache()
        if not self.index:  # an endless sampler would search for ever
            raise ValueError(
                f'no image is left of sources={sources!r} (max_images={max_images}, {len(self.items)} found): '
                'give sources with readable images'
            )

    def _fill_cache(self) -> None:
        numbers = range(len(self.items))
        with ThreadPoolExecutor(8) as pool:
            # a zip file is read by one thread at a time
            local = [i for i in numbers if Path(self.items[i][0]).is_dir()]
            for i, image in zip(local, pool.map(self._read, local)):
                self._images[i] = image
        for i in numbers:
            if not Path(self.items[i][0]).is_dir():
                self._images[i] = self._read(i)
        bad = {i for i in numbers if self._images[i] is None}
        self.index = [i for i in self.index if i not in bad]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        for offset in range(len(self)):
            item = self.index[(number + offset) % len(self)]
            image = self._images[item] if self._images[item] is not None else self._read(item)
            if image is not None:
                crop = self._crop(image, self.items[item][2])
                return dict(inputs=crop, label=self._labels[item]) if self.classes else dict(inputs=crop)
        raise ValueError('none of the images can be read')

    def _read(self, item: int) -> np.ndarray | None:
        source, member, sides = self.items[item]
        image = decode(self._archives.read(source, member))
        if image is None:
            message = f'{source}/{member} is not a readable image'
            if self.on_error == 'raise':
                raise ValueError(f"{message}. Remove it, or set on_error='skip' to leave such images out")
            warnings.warn(f'{message}; it is left out', stacklevel=2)
            return None
        side = min(image.shape[:2])
        if side > sides[1]:  # never needed larger
            image = resize_short_side(image, sides[1])
        return image

    def _crop(self, image: np.ndarray, sides: tuple[int, int]) -> Tensor:
        """Random numbers come from torch: workers are seeded, and resuming restores them."""
        u = torch.rand(4).tolist() if self.random else [0.0, 0.5, 0.5, 1.0]
        side = int(sides[0] + u[0] * (sides[1] - sides[0] + 1)) if self.random else sides[0]
        if min(image.shape[:2]) != side:
            image = resize_short_side(image, side)
        top = int(u[1] * (image.shape[0] - self.size + 1) * 0.999999)
        left = int(u[2] * (image.shape[1] - self.size + 1) * 0.999999)
        image = image[top : top + self.size, left : left + self.size]
        if self.flip and u[3] < 0.5:
            image = image[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _slice(members: list[str], first: int, last: int | None, by_class: bool) -> list[str]:
    """Numbers ``first`` to ``last`` of each class, or of all."""
    if not by_class:
        return members[first:last]
    groups: dict[str, list[str]] = {}
    for member in members:
        groups.setdefault(member.partition('/')[0], []).append(member)
    return [member for group in groups.values() for member in group[first:last]]


def _class_labels(members: Sequence[tuple[str, str]]) -> tuple[list[str], list[int]]:
    """Names of the classes, and each image's number among them."""
    outside = [f'{path}/{member}' for path, member in members if '/' not in member]
    if outside:
        raise ValueError(
            f'labels=True, and {len(outside)} images lie in no class folder, for example {outside[0]}. Allowed: FOLDER/CLASS/IMAGE'
        )
    names = [member.partition('/')[0] for _, member in members]
    classes = sorted(set(names))
    return classes, [classes.index(name) for name in names]


def _settings(
    source: str | Path | Mapping[str, Any], short_side: Sequence[int] | None, size: int
) -> tuple[str, tuple[int, int], int]:
    """A source's path, range of short sides, and repetitions."""
    given = dict(source) if isinstance(source, Mapping) else dict(path=source)
    unknown = sorted(set(given) - {'path', 'short_side', 'repeat'})
    if unknown or 'path' not in given:
        raise ValueError(f'source {source!r} does not fit: allowed is dict(path=…, short_side=(low, high), repeat=1)')
    sides = tuple(given.get('short_side') or short_side or (size, size))
    if len(sides) != 2 or not size <= sides[0] <= sides[1]:
        raise ValueError(
            f'short_side={sides} does not fit: allowed is (low, high) with size={size} <= low <= high'
        )
    repeat = given.get('repeat', 1)
    if not isinstance(repeat, int) or repeat < 1:
        raise ValueError(f'repeat={repeat!r} of {given["path"]} does not fit: allowed is a whole number, at least 1')
    return str(given['path']), sides, repeat


def decode(data: bytes) -> np.ndarray | None:
    """BGR (H, W, 3), or None for what is no image."""
    if not data:
        return None
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # larger than OpenCV allows, for one
        return None


def read_image(path: str | Path, whose: str = '') -> np.ndarray:
    """A file as BGR (H, W, 3) uint8.

    Args:
        whose: said with the file when it cannot be read, e.g. ``'pair 3 of pairs.json'``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no image that can be read.
    """
    path = Path(path)
    of = f' ({whose})' if whose else ''
    if not path.is_file():
        raise FileNotFoundError(f'image {path}{of}: no such file')
    image = decode(path.read_bytes())
    if image is None:
        raise ValueError(f'{path}{of} is no image that can be read: damaged, or of a format that OpenCV does not know')
    return image


def resize_short_side(image: np.ndarray, short_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def list_images(source: str | Path) -> list[str]:
    """Image members of a folder or zip file, relative, sorted.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: it is neither a folder nor a whole zip file, or it holds no image.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f'{source}: no such folder or zip file (images to train on)')
    if path.is_dir():
        names = [entry.relative_to(path).as_posix() for entry in path.rglob('*') if entry.is_file()]
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise ValueError(
                f'{source} is not a readable zip file ({error}); allowed: a folder or a zip file. Fetch or make it again'
            ) from error
    # macOS puts files like ._name.jpg beside the images, which are none
    names = [name for name in names if not Path(name).name.startswith('.')]
    images = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f'{source} holds no images; recognised endings: {sorted(SUFFIXES)}')
    return images
