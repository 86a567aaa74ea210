"""ImageFolder: unlabelled images from folders and zip files, for generative pre-training."""

from __future__ import annotations

import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Mapping, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS

SUFFIXES = {'.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff'}


@DATASETS.register_module()
class ImageFolder(Dataset):
    """Random crops of unlabelled images: ``dict(inputs=uint8 tensor (3, size, size), BGR)``.

    Args:
        sources: folders or ``.zip`` files, read recursively in the order of their names; or
            ``dict(path=…, short_side=(low, high), repeat=1)`` with settings of their own.
        size: side of the crop in pixels.
        short_side: an image's short side is resized to a number of pixels drawn from this range, then cropped; default:
            exactly ``size``.
        flip: mirror half of them.
        on_error: an unreadable image is named and ``'raise'``: fatal, or ``'skip'``: left out.
        cache: keep decoded images in memory (workers share it); else files are read each time.
        max_images: the first so many of each source.
        random: False gives centre crops without flips.
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
    ) -> None:
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"on_error={on_error!r} is unknown; allowed: 'raise', 'skip'")
        self.size, self.flip, self.on_error, self.random = size, flip, on_error, random
        self.items: list[tuple[str, str, tuple[int, int]]] = []  # (source, member, short side's range)
        weights: list[int] = []
        for source in [sources] if isinstance(sources, (str, Mapping)) else sources:
            source = dict(source) if isinstance(source, Mapping) else dict(path=source)
            sides = tuple(source.get('short_side') or short_side or (size, size))
            if len(sides) != 2 or not size <= sides[0] <= sides[1]:
                raise ValueError(
                    f'short_side={sides} does not fit: allowed is (low, high) with size={size} <= low <= high'
                )
            members = list_images(source['path'])[:max_images]
            self.items += [(str(source['path']), member, sides) for member in members]
            weights += [source.get('repeat', 1)] * len(members)
        self._zips: dict[str, zipfile.ZipFile] = {}
        self._images: list[np.ndarray | None] = [None] * len(self.items)
        self.index = [i for i, weight in enumerate(weights) for _ in range(weight)]
        if cache:
            self._fill_cache()

    def _fill_cache(self) -> None:
        numbers = range(len(self.items))
        with ThreadPoolExecutor(8) as pool:
            # a zip file is read by one thread at a time
            local = [i for i in numbers if not self.items[i][0].endswith('.zip')]
            for i, image in zip(local, pool.map(self._read, local)):
                self._images[i] = image
        for i in numbers:
            if self._images[i] is None and self.items[i][0].endswith('.zip'):
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
                return dict(inputs=self._crop(image, self.items[item][2]))
        raise ValueError('none of the images can be read')

    def _read(self, item: int) -> np.ndarray | None:
        source, member, sides = self.items[item]
        data = self._bytes(source, member)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if image is None:
            message = f'{source}/{member} is not a readable image'
            if self.on_error == 'raise':
                raise ValueError(f"{message}. Remove it, or set on_error='skip' to leave such images out")
            warnings.warn(f'{message}; it is left out', stacklevel=2)
            return None
        side = min(image.shape[:2])
        if side > sides[1]:  # never needed larger
            image = _resize(image, sides[1])
        return image

    def _bytes(self, source: str, member: str) -> bytes:
        if not source.endswith('.zip'):
            return (Path(source) / member).read_bytes()
        if source not in self._zips:
            self._zips[source] = zipfile.ZipFile(source)
        return self._zips[source].read(member)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_zips': {}}

    def _crop(self, image: np.ndarray, sides: tuple[int, int]) -> Tensor:
        """Random numbers come from torch: workers are seeded, and resuming restores them."""
        u = torch.rand(4).tolist() if self.random else [0.0, 0.5, 0.5, 1.0]
        side = int(sides[0] + u[0] * (sides[1] - sides[0] + 1)) if self.random else sides[0]
        if min(image.shape[:2]) != side:
            image = _resize(image, side)
        top = int(u[1] * (image.shape[0] - self.size + 1) * 0.999999)
        left = int(u[2] * (image.shape[1] - self.size + 1) * 0.999999)
        image = image[top : top + self.size, left : left + self.size]
        if self.flip and u[3] < 0.5:
            image = image[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _resize(image: np.ndarray, short_side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    size = (max(short_side, round(width * scale)), max(short_side, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def list_images(source: str | Path) -> list[str]:
    """Image members of a folder or zip file, relative, sorted.

    Raises:
        FileNotFoundError: the source is not there.
        ValueError: it holds no image.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f'{source}: no such folder or zip file (images to train on)')
    if path.suffix == '.zip':
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    else:
        names = [str(entry.relative_to(path)) for entry in path.rglob('*') if entry.is_file()]
    images = sorted(name for name in names if Path(name).suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f'{source} holds no images; recognised endings: {sorted(SUFFIXES)}')
    return images
