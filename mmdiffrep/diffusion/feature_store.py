"""FeatureStore: frozen maps of images, computed once, in memory or in memory-mapped files that are checked before they are used."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .pixel_sampling import sample_images
from .shards import Record, Shards

DTYPES = {'fp16': torch.float16, 'fp32': torch.float32}
GIB = 2**30


@dataclass(slots=True)
class ImageFeatures:
    """One image's maps, in memory or in a file, and the size (H, W) of the image that they cover."""

    size: tuple[int, int]
    bytes: int
    held: list[Tensor] | None = None
    record: Record | None = None

    @property
    def maps(self) -> list[Tensor]:
        """Each (h_k, w_k, C_k), in the order of the backbone's. OSError: the file is gone."""
        if self.record is None:
            return list(self.held or [])
        content, begin = self.record.content()
        about = self.record.about
        dtype = DTYPES[about['dtype']]
        maps = []
        for shape in about['shapes']:
            count = math.prod(shape)
            maps.append(torch.frombuffer(content, dtype=dtype, count=count, offset=begin).view(shape))
            begin += count * dtype.itemsize
        return maps


class FeatureStore:
    """Maps of images at their native size, in the order in which the images were added.

    In files, an image's maps are an entry that is named by the image's content, the network and the precision; its SHA-256 is verified before
    it is used. What is damaged or of something else is computed anew, with a warning. Any number of processes may fill a folder at once, and may be
    killed: see :mod:`shards`.

    Args:
        mark: names what computed the maps (weights, taps, timesteps, noise, library versions): other marks, other maps.
        folder: where files are kept; None: in memory.
        dtype: ``'fp16'`` or ``'fp32'``.
        resident: bytes of mapped files that may stay in main memory at once; beyond it they are unmapped and read again when
            they are needed (Linux).
        limit: GiB that the folder's files may take, of other marks too: the least recently used go first. What finds no room stays in memory.
    """

    def __init__(
        self,
        mark: str,
        folder: str | os.PathLike[str] | None = None,
        dtype: str = 'fp16',
        resident: int = 2**30,
        limit: float | None = None,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype={dtype!r} is unknown; allowed: {list(DTYPES)}')
        if resident < 0:
            raise ValueError(f'resident={resident} does not fit; allowed: 0 bytes and more')
        if limit is not None and not limit > 0:
            raise ValueError(f'limit={limit} does not fit: give GiB, more than 0, or None')
        self.mark, self.dtype, self.resident = mark, dtype, resident
        self.folder = None if folder is None else Path(folder)
        self.shards: Shards | None = None
        if self.folder is not None:
            self.shards = Shards(self.folder, f'{mark} {dtype}', None if limit is None else int(limit * GIB))
        self.images: list[ImageFeatures] = []
        self.bytes = 0  # of all maps, in memory or on disk
        self.computed = 0

    def __len__(self) -> int:
        return len(self.images)

    def find(self, key: str, size: tuple[int, int]) -> int | None:
        """The next image from its file: its number; None: there is no entry, or a damaged one."""
        record = self.shards.find(self._name(key, size)) if self.shards is not None else None
        if record is None:
            return None
        return self._added(ImageFeatures(tuple(size), record.length, record=record))

    def add(self, key: str, size: tuple[int, int], compute: Callable[[], Sequence[Tensor]]) -> int:
        """The next image: its maps are read from its file, or computed. Returns its number.

        Args:
            key: names the image by its content, see :func:`content_key`.
            size: (H, W) of the image that the maps cover.
            compute: gives the maps, each (1, C_k, h_k, w_k) or (C_k, h_k, w_k).

        Raises:
            ValueError: a map holds nan or what half precision cannot hold.
        """
        number = self.find(key, size)
        return number if number is not None else self.put(key, size, self.laid_out(compute()))

    def put(self, key: str, size: tuple[int, int], kept: list[Tensor]) -> int:
        """The next image, by its maps as :meth:`laid_out` gives them. Returns its number."""
        self.computed += 1
        image = ImageFeatures(tuple(size), sum(m.numel() * m.element_size() for m in kept), held=kept)
        if self.shards is not None:
            about = dict(dtype=self.dtype, shapes=[list(m.shape) for m in kept], size=list(size))
            image.record = self.shards.append(self._name(key, size), about, [memoryview(m.numpy()).cast('B') for m in kept])
            if image.record is not None:
                image.held = None
        return self._added(image)

    def drop_last(self) -> ImageFeatures:
        """Forget the image that was added last."""
        image = self.images.pop()
        self.bytes -= image.bytes
        return image

    def sample(self, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Features of pixels (y, x) of images by number, all (n,) -> (n, ΣC_k) float32; see :func:`sample_images`."""
        if not len(image):
            raise ValueError('no pixels were asked for: give at least one')
        numbers, places = image.unique(return_inverse=True)
        asked = [self.images[i] for i in numbers.tolist()]
        return sample_images([one.maps for one in asked], [one.size for one in asked], places, y, x, after=self._release)

    def close(self) -> None:
        """Finish the file that is being written."""
        if self.shards is not None:
            self.shards.close()

    def _added(self, image: ImageFeatures) -> int:
        self.images.append(image)
        self.bytes += image.bytes
        return len(self.images) - 1

    def _name(self, key: str, size: tuple[int, int]) -> bytes:
        return hashlib.sha256('\0'.join([self.mark, self.dtype, f'{size[0]}x{size[1]}', key]).encode()).digest()

    def laid_out(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """An image's maps, each (1, C_k, h_k, w_k) or (C_k, h_k, w_k) -> (h_k, w_k, C_k) as they are kept. ValueError: see :meth:`add`."""
        return [self._laid_out(m[0] if m.dim() == 4 else m) for m in maps]

    def _laid_out(self, m: Tensor) -> Tensor:
        kept = m.detach().permute(1, 2, 0).to('cpu', DTYPES[self.dtype]).contiguous()
        if not kept.isfinite().all():
            cure = " or beyond half precision's 65504: give dtype='fp32'" if m.isfinite().all() else ': it is nan or infinite'
            raise ValueError(f'a map {tuple(m.shape)} holds values up to {m.abs().max().item():g}{cure}')
        return kept

    def _release(self) -> None:
        if self.shards is not None:
            self.shards.release(self.resident)


def content_key(image: Tensor) -> str:
    """Names an image (C, H, W) by its values as the network gets them."""
    raw = image.detach().float().cpu().contiguous()
    found = hashlib.sha256(str(tuple(raw.shape)).encode())
    found.update(memoryview(raw.numpy()))
    return found.hexdigest()
