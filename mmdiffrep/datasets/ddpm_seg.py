"""The six data sets of Baranchuk et al. 2022 (https://arxiv.org/abs/2112.03126): from their files to images and masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SUFFIXES = {'.jpg', '.jpeg', '.png', '.gif'}  # of images, as the original's loader looks for
IGNORED = 255


@dataclass(frozen=True)
class DDPMSegSet:
    """What is to be known of a set to convert it.

    Attributes:
        classes: those that are scored.
        train, test: images with labels, the first so many in the order of their paths.
        void: the label that is ignored, which the classes are then numbered without; None: only 255 is.
    """

    classes: int
    train: int
    test: int
    void: int | None = None


SETS = {
    'bedroom-28': DDPMSegSet(28, 40, 20, void=0),
    'ffhq-34': DDPMSegSet(34, 20, 20),
    'cat-15': DDPMSegSet(15, 30, 20),
    'horse-21': DDPMSegSet(21, 30, 30),
    'celeba-19': DDPMSegSet(19, 20, 500),
    'ade-bedroom-30': DDPMSegSet(30, 50, 650),
}


def convert(
    source: str | Path,
    name: str,
    out: str | Path,
    size: int = 256,
    say: Callable[[str], None] = print,
) -> Path:
    """``source/{real/train,real/test,ddpm}`` with an ``.npy`` beside each image become ``out/{images,labels}/{train,test,sampled}/*.png``.

    Images are resized bilinearly, with antialiasing, and masks to the nearest pixel, as the original does when it reads them.

    Args:
        source: the set's folder, ``…/bedroom_28``.
        name: one of ``SETS``.
        out: a folder that is new or empty.
        size: side of images and masks, pixels.
        say: is told how many images each split has.

    Raises:
        FileNotFoundError: a folder or a mask is not there.
        ValueError: fewer images than the set has, an image that is not square, a mask of another size, or with other labels.
    """
    about = facts(name)
    source, out = Path(source), Path(out)
    folders = dict(train='real/train', test='real/test')
    if (source / 'ddpm').is_dir():
        folders['sampled'] = 'ddpm'
    counts = dict(train=about.train, test=about.test)
    pairs = {split: _pairs(source, folder, counts.get(split)) for split, folder in folders.items()}
    for split, found in pairs.items():
        for image, mask in found:
            # folders below the split's become part of the name
            parts = image.relative_to(source / folders[split]).with_suffix('').parts
            file = Path(split, f'{"_".join(parts)}.png')
            picture, labels = _read(image, mask, about, size)
            _write(Image.fromarray(picture), out / 'images' / file)
            _write(Image.fromarray(labels), out / 'labels' / file)
        say(f'{split}: {len(found)} images of {size}×{size}')
    return out


def facts(name: str) -> DDPMSegSet:
    """Raises: ValueError for an unknown name."""
    if name not in SETS:
        raise ValueError(f'{name!r} is no data set of DDPM-Seg; allowed: {list(SETS)}')
    return SETS[name]


def read_mask(file: str | Path, about: DDPMSegSet) -> np.ndarray:
    """An ``.npy`` of labels as (H, W) uint8, 255 ignored. Nothing but numbers is read, never code.

    Raises: ValueError naming the file.
    """
    try:
        given = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f'{file} is no array of numbers ({error}). Is the download complete?'
        ) from error
    if not isinstance(given, np.ndarray) or given.ndim != 2 or given.dtype.kind not in 'biuf':
        raise ValueError(
            f'{file} holds {getattr(given, "dtype", type(given).__name__)} {getattr(given, "shape", "")}; needed: labels (H, W)'
        )
    labels = given.astype(np.int64)
    if not np.array_equal(labels, given):
        raise ValueError(f'{file} holds numbers that are not whole; needed: labels')
    labels[labels == -1] = IGNORED  # as in 8 bits
    if about.void is not None:
        after = labels > about.void
        labels[labels == about.void] = IGNORED
        labels[after & (labels != IGNORED)] -= 1
    found = np.unique(labels)
    wrong = [int(k) for k in found if k != IGNORED and not 0 <= k < about.classes]
    if wrong:
        raise ValueError(
            f'{file} has labels {wrong[:8]} beyond the {about.classes} classes (numbered without what is ignored). Is it of another set?'
        )
    return labels.astype(np.uint8)


def _pairs(source: Path, folder: str, count: int | None) -> list[tuple[Path, Path]]:
    """(image, mask) of a split."""
    place = source / folder
    if not place.is_dir():
        raise FileNotFoundError(
            f'{place}: no such folder. Needed: {source}/real/train and {source}/real/test with images and their .npy beside them, as '
            'the archive has them'
        )
    images = sorted(
        (
            p
            for p in place.rglob('*')
            if p.suffix.lower() in SUFFIXES and not p.name.startswith('.')
        ),
        key=str,
    )
    if not images or (count is not None and len(images) < count):
        raise ValueError(
            f'{place} has {len(images)} images, the set {count or "some"}. Is the download complete?'
        )
    pairs = [(image, image.with_suffix('.npy')) for image in images[:count]]
    missing = [str(mask) for _, mask in pairs if not mask.is_file()]
    if missing:
        raise FileNotFoundError(f'{len(missing)} masks are not there, such as {missing[0]}')
    return pairs


def _read(image: Path, mask: Path, about: DDPMSegSet, size: int) -> tuple[np.ndarray, np.ndarray]:
    """RGB (size, size, 3) and labels (size, size), uint8."""
    import cv2

    with Image.open(image) as opened:
        picture = opened.convert('RGB')
    if picture.width != picture.height:
        raise ValueError(
            f'{image} is {picture.width}×{picture.height} (width × height); needed: a square'
        )
    labels = read_mask(mask, about)
    if labels.shape != (picture.height, picture.width):
        raise ValueError(
            f'{mask} is {labels.shape[0]}×{labels.shape[1]} and its image {picture.height}×{picture.width} (height × width)'
        )
    if picture.width != size:
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
        labels = cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST)
    return np.asarray(picture), labels


def _write(picture: Image.Image, file: Path) -> None:
    """A PNG, complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f'.{file.name}.new')
    picture.save(new, format='PNG')
    new.replace(file)
