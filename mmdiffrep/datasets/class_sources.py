"""Where images with a class come from: folders, zip files, CIFAR's binary files."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from .archives import Archives
from .images import decode, list_images

# label bytes before each image; which of them is the class; files of the training and the test images; file of the names
CIFAR = {
    'cifar-10': (1, 0, [f'data_batch_{i}.bin' for i in range(1, 6)], ['test_batch.bin'], 'batches.meta.txt'),
    'cifar-100': (2, 1, ['train.bin'], ['test.bin'], 'fine_label_names.txt'),
}  # fmt: skip
SIDE = 32


class ClassSource(Protocol):
    """Images by number: ``classes``, each image's ``labels``, its ``names``, and ``read``: BGR (H, W, 3)."""

    classes: list[str]
    labels: list[int]
    names: list[str]

    def read(self, number: int) -> np.ndarray:
        """ValueError for what is no image."""


def open_source(path: str | os.PathLike[str], part: str | None = None) -> ClassSource:
    """What lies at ``path``: a folder or zip file of CLASS/IMAGE, or a folder of CIFAR's binary files.

    Args:
        part: ``'train'`` or ``'test'`` of CIFAR; of a folder or zip file, the folder in it that holds the classes.

    Raises:
        FileNotFoundError: nothing lies there.
        ValueError: a class without images, images outside class folders, files cut short.
    """
    place = Path(path)
    if not place.exists():
        raise FileNotFoundError(
            f'{path}: no such folder or zip file; expected CLASS/IMAGE in a folder or zip file, or CIFAR\'s binary files'
        )
    for kind in CIFAR:
        _, _, train, test, _ = CIFAR[kind]
        if place.is_dir() and any((place / name).exists() for name in (*train, *test)):
            return CifarFiles(place, kind, part)
    if place.is_dir() and ((place / 'data_batch_1').exists() or (place / 'meta').exists()):
        raise ValueError(
            f"{path} holds CIFAR's files for Python, which are pickles and could run any code: fetch the binary version "
            "(cifar-10-binary.tar.gz, cifar-100-binary.tar.gz) and give its unpacked folder"
        )
    return ClassFolders(place, part)


class ClassFolders:
    """CLASS/…/IMAGE below a folder, or in a zip file; classes are numbered in the order of their names."""

    def __init__(self, path: Path, part: str | None = None) -> None:
        self.path, self.prefix = path, f'{part.strip("/")}/' if part else ''
        members = [m for m in list_images(path) if m.startswith(self.prefix)]
        if not members:
            raise ValueError(f'{path} holds no images below {self.prefix!r}')
        inner = [m[len(self.prefix) :] for m in members]
        outside = [m for m in inner if '/' not in m]
        if outside:
            raise ValueError(
                f'{len(outside)} images of {path} lie in no class folder, for example {outside[0]}; allowed: CLASS/IMAGE'
            )
        self.members = members
        found = [m.partition('/')[0] for m in inner]
        self.classes = sorted(set(found))
        empty = sorted(self._folders() - set(self.classes))
        if empty:
            raise ValueError(
                f'{path}: the class folder(s) {empty[:5]} hold no image. Put images there, or remove the folder'
            )
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = [number[name] for name in found]
        self.names = [f'{path}/{m}' for m in members]
        self._archives = Archives()

    def _folders(self) -> set[str]:
        """Names of all class folders, also of empty ones."""
        if self.path.is_dir():
            root = self.path / self.prefix
            return {entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith('.')}
        with zipfile.ZipFile(self.path) as archive:
            inside = [n[len(self.prefix) :] for n in archive.namelist() if n.startswith(self.prefix)]
        return {n.partition('/')[0] for n in inside if '/' in n} - {'__MACOSX', ''}

    def read(self, number: int) -> np.ndarray:
        image = decode(self._archives.read(self.path, self.members[number]))
        if image is None:
            raise ValueError(f'{self.names[number]} is not a readable image: remove it or fetch it again')
        return image


class CifarFiles:
    """CIFAR-10's or CIFAR-100's binary version (Krizhevsky 2009): label bytes, then 1024 red, green and blue bytes an image."""

    def __init__(self, path: Path, kind: str, part: str | None = 'train') -> None:
        if part not in ('train', 'test'):
            raise ValueError(f"part={part!r} was given for {kind}'s files in {path}; allowed: 'train', 'test'")
        before, place, train, test, names = CIFAR[kind]
        record = before + 3 * SIDE * SIDE
        read = []
        for name in train if part == 'train' else test:
            file = path / name
            if not file.exists():
                raise FileNotFoundError(f"{file} is missing: unpack {kind}'s binary version whole")
            size = file.stat().st_size
            if not size or size % record:
                raise ValueError(f'{file} has {size} bytes, no whole number of images of {record} bytes: cut short? Fetch it again')
            read.append(np.memmap(file, np.uint8, 'r').reshape(-1, record))
        self.data = np.concatenate(read)
        self.before = before
        self.labels = self.data[:, place].astype(int).tolist()
        self.classes = self._names(path / names, max(self.labels) + 1)
        self.names = [f'{path}/{part} image {i}' for i in range(len(self.labels))]

    @staticmethod
    def _names(file: Path, least: int) -> list[str]:
        if not file.exists():
            raise FileNotFoundError(f'{file} is missing: it holds the names of the classes')
        names = file.read_text(encoding='utf-8').split()
        if len(names) < least:
            raise ValueError(f'{file} names {len(names)} classes, and the images have {least}: damaged? Fetch it again')
        return names

    def read(self, number: int) -> np.ndarray:
        planes = self.data[number, self.before :].reshape(3, SIDE, SIDE)
        return np.ascontiguousarray(planes[::-1].transpose(1, 2, 0))
