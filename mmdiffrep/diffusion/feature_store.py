"""FeatureStore: frozen maps of images, computed once, in memory or in memory-mapped files that are checked before they are used."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .pixel_sampling import sample_images

DTYPES = {'fp16': torch.float16, 'fp32': torch.float32}
MAGIC = b'mmdiffrep-maps-1'
STATM = Path('/proc/self/statm')


@dataclass
class ImageFeatures:
    """One image's maps, each (h_k, w_k, C_k), and the size (H, W) of the image that they cover."""

    maps: list[Tensor]
    size: tuple[int, int]
    mapped: mmap.mmap | None = None

    @property
    def bytes(self) -> int:
        return sum(m.numel() * m.element_size() for m in self.maps)


class FeatureStore:
    """Maps of images at their native size, in the order in which the images were added.

    A file holds one image's maps. It is named by the image's content, the network and the precision; its SHA-256 is verified
    before it is used. A file that is damaged or of something else is computed anew, with a warning.

    Args:
        mark: names what computed the maps (weights, taps, timesteps, noise, library versions): other marks, other maps.
        folder: where files are kept, each written to a temporary name and renamed; None: in memory.
        dtype: ``'fp16'`` or ``'fp32'``.
        resident: bytes of mapped files that may stay in main memory at once; beyond it they are unmapped and read again when
            they are needed (Linux).
    """

    def __init__(
        self,
        mark: str,
        folder: str | os.PathLike[str] | None = None,
        dtype: str = 'fp16',
        resident: int = 2**30,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f'dtype={dtype!r} is unknown; allowed: {list(DTYPES)}')
        if resident < 0:
            raise ValueError(f'resident={resident} does not fit; allowed: 0 bytes and more')
        self.mark, self.dtype, self.resident = mark, dtype, resident
        self.folder = None if folder is None else Path(folder)
        self.images: list[ImageFeatures] = []
        self.computed = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Of all maps, in memory or on disk."""
        return sum(image.bytes for image in self.images)

    def add(self, key: str, size: tuple[int, int], compute: Callable[[], Sequence[Tensor]]) -> int:
        """The next image: its maps are read from its file, or computed. Returns its number.

        Args:
            key: names the image by its content, see :func:`content_key`.
            size: (H, W) of the image that the maps cover.
            compute: gives the maps, each (1, C_k, h_k, w_k) or (C_k, h_k, w_k).

        Raises:
            ValueError: a map holds nan or what half precision cannot hold.
        """
        found = self._read(key, size) if self.folder is not None else None
        if found is None:
            self.computed += 1
            maps = [self._laid_out(m) for m in compute()]
            found = ImageFeatures(maps, size)
            if self.folder is not None:
                self._write(key, found)
                del maps, found
                found = self._map(*self._header(key, self.path(key)), self.path(key))
        self.images.append(found)
        return len(self.images) - 1

    def sample(self, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Features of pixels (y, x) of images by number, all (n,) -> (n, ΣC_k) float32; see :func:`sample_images`."""
        if not len(image):
            raise ValueError('no pixels were asked for: give at least one')
        maps, sizes = [one.maps for one in self.images], [one.size for one in self.images]
        return sample_images(maps, sizes, image, y, x, after=self._release)

    def path(self, key: str) -> Path:
        """The file of an image."""
        assert self.folder is not None
        name = hashlib.sha256('\0'.join([self.mark, key, self.dtype]).encode()).hexdigest()
        return self.folder / f'{name[:40]}.maps'

    def _laid_out(self, m: Tensor) -> Tensor:
        m = m[0] if m.dim() == 4 else m
        kept = m.detach().permute(1, 2, 0).to('cpu', DTYPES[self.dtype]).contiguous()
        if not kept.isfinite().all():
            cure = (
                " or beyond half precision's 65504: give dtype='fp32'"
                if m.isfinite().all()
                else ': it is nan or infinite'
            )
            raise ValueError(
                f'a map {tuple(m.shape)} holds values up to {m.abs().max().item():g}{cure}'
            )
        return kept

    def _about(self, key: str, image: ImageFeatures) -> dict[str, Any]:
        shapes = [list(m.shape) for m in image.maps]
        return dict(mark=self.mark, key=key, dtype=self.dtype, shapes=shapes, size=list(image.size))

    def _write(self, key: str, image: ImageFeatures) -> None:
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        about = self._about(key, image)
        raw = [memoryview(m.numpy()).cast('B') for m in image.maps]
        about['sha256'] = _checksum(about, raw)
        header = json.dumps(about).encode()
        header += b' ' * (-(len(MAGIC) + 8 + len(header)) % 64)
        handle, temporary = tempfile.mkstemp(dir=self.folder, suffix='.part')
        try:
            with os.fdopen(handle, 'wb') as file:
                for part in (MAGIC, len(header).to_bytes(8, 'little'), header, *raw):
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path(key))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _read(self, key: str, size: tuple[int, int]) -> ImageFeatures | None:
        path = self.path(key)
        if not path.exists():
            return None
        try:
            about, begin = self._header(key, path)
            if about['size'] != list(size):
                raise _Unfit(f'its image is {about["size"]}, this one {list(size)}')
            with path.open('rb') as file:
                file.seek(begin)
                if _checksum(about, iter(lambda: file.read(2**20), b'')) != about.get('sha256'):
                    raise _Unfit('its content does not match its SHA-256')
            return self._map(about, begin, path)
        except (_Unfit, OSError) as error:
            warnings.warn(f'{path} is not used: {error}. The maps are computed anew', stacklevel=3)
            return None

    def _header(self, key: str, path: Path) -> tuple[dict[str, Any], int]:
        """What a file says about itself, and where its maps begin; _Unfit if it is not what it should be."""
        with path.open('rb') as file:
            start = file.read(len(MAGIC) + 8)
            if len(start) < len(MAGIC) + 8 or not start.startswith(MAGIC):
                raise _Unfit('it is no file of maps, or cut short')
            length = int.from_bytes(start[len(MAGIC) :], 'little')
            whole = os.fstat(file.fileno()).st_size
            try:
                about = json.loads(file.read(min(length, whole)))
                wanted = (
                    sum(_count(shape) for shape in about['shapes'])
                    * DTYPES[about['dtype']].itemsize
                )
            except (ValueError, KeyError, TypeError) as error:
                raise _Unfit('its header cannot be read') from error
        begin = len(start) + length
        if whole != begin + wanted:
            raise _Unfit(f'it has {whole} bytes instead of {begin + wanted}: cut short')
        for name, own in (('mark', self.mark), ('key', key), ('dtype', self.dtype)):
            if about.get(name) != own:
                raise _Unfit(
                    f'it is of another {dict(mark="backbone", key="image", dtype="precision")[name]} ({about.get(name)!r:.200})'
                )
        return about, begin

    def _map(self, about: dict[str, Any], begin: int, path: Path) -> ImageFeatures:
        with path.open('rb') as file:
            # copy on write, so that tensors may be made of it; nothing is ever written
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        maps = []
        for shape in about['shapes']:
            dtype = DTYPES[about['dtype']]
            maps.append(
                torch.frombuffer(mapped, dtype=dtype, count=_count(shape), offset=begin).view(shape)
            )
            begin += _count(shape) * dtype.itemsize
        return ImageFeatures(maps, tuple(about['size']), mapped)

    def _release(self) -> None:
        """Give mapped pages back when there are too many."""
        mapped = [image.mapped for image in self.images if image.mapped is not None]
        if not mapped or not STATM.exists() or not hasattr(mmap, 'MADV_DONTNEED'):
            return
        shared = int(STATM.read_text().split()[2]) * mmap.PAGESIZE  # file-backed pages in memory
        if shared > self.resident:
            for one in mapped:
                one.madvise(mmap.MADV_DONTNEED)


class _Unfit(Exception):
    """Why a file is not used."""


def content_key(image: Tensor) -> str:
    """Names an image (C, H, W) by its values as the network gets them."""
    raw = image.detach().float().cpu().contiguous()
    found = hashlib.sha256(str(tuple(raw.shape)).encode())
    found.update(memoryview(raw.numpy()))
    return found.hexdigest()


def _count(shape: Sequence[int]) -> int:
    rows, columns, channels = shape
    return int(rows) * int(columns) * int(channels)


def _checksum(about: dict[str, Any], parts: Any) -> str:
    found = hashlib.sha256(
        json.dumps({k: v for k, v in about.items() if k != 'sha256'}, sort_keys=True).encode()
    )
    for part in parts:
        found.update(part)
    return found.hexdigest()
