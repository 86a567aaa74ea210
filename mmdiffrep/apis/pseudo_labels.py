"""Pseudo-labels of unlabelled images: kept one by one, ranked by uncertainty, exported as a data set (DatasetDDPM).

Baranchuk et al. 2022, https://arxiv.org/abs/2112.03126, section 4.2.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmdiffrep.datasets.images import decode
from mmdiffrep.engine.saving import replace_folder
from mmdiffrep.utils.files import write

from .generative import claim


@dataclass(frozen=True)
class Ranked:
    """An image's place: 1 is the most certain."""

    rank: int
    name: str
    image: Path
    uncertainty: float
    kept: bool


class PseudoLabels:
    """A folder of predictions that goes on where it was interrupted.

    ``predictions/NAME.png`` (labels) and ``NAME.json`` (uncertainty, SHA-256 of the image) are written as images are predicted; the
    ``.json`` comes last, so that what has one is complete. :meth:`export` writes ``ranking.csv`` and ``dataset/{images,labels}/NAME.png``.

    Args:
        folder: of its own.
        made_by: names the model, such as digests of config and weights; a folder with another model's predictions is refused.

    Raises:
        ValueError: the folder holds predictions of another model, or is a file.
    """

    def __init__(self, folder: str | Path, made_by: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f'{str(folder)!r} is a file; give a folder')
        self._predictions = self.folder / 'predictions'
        claim(self._predictions / 'about.json', dict(made_by), "another model's predictions")

    def uncertainty(self, name: str, image: Path) -> float | None:
        """An image's, if it has been predicted and has not changed since; else None."""
        try:
            record = json.loads((self._predictions / f'{name}.json').read_text(encoding='utf-8'))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return record['uncertainty'] if record['sha256'] == _digest(image) else None

    def add(self, name: str, image: Path, labels: np.ndarray, uncertainty: float) -> None:
        """Keep a prediction: labels (H, W) below 255, and how uncertain the image is.

        Raises: ValueError for what cannot be kept.
        """
        if labels.ndim != 2 or labels.min() < 0 or labels.max() >= 255:
            raise ValueError(
                f'{image}: labels {labels.shape} from {labels.min()} to {labels.max()}; allowed: (H, W), from 0 to 254, 255 means ignored'
            )
        if not math.isfinite(uncertainty):
            raise ValueError(
                f'{image}: its uncertainty is {uncertainty}; the model is broken (was it trained with too high a rate?)'
            )
        # a record must not speak for new labels
        (self._predictions / f'{name}.json').unlink(missing_ok=True)
        write(self._predictions / f'{name}.png', _png(labels.astype(np.uint8)))
        record = dict(image=str(image), sha256=_digest(image), uncertainty=uncertainty)
        write(self._predictions / f'{name}.json', json.dumps(record))

    def export(
        self, images: Mapping[str, Path], keep: float = 0.9, drop_certain: int = 0, card: str = ''
    ) -> list[Ranked]:
        """Rank images and write the data set of the most certain ones, complete or not at all; an older one is replaced.

        Args:
            images: name -> file, all predicted.
            keep: share that is kept: of n images n - floor(n · (1 - keep)), at least one.
            drop_certain: leave out so many of the most certain ones and keep as many more of the uncertain, as the paper's code does
                with 30.
            card: the data set's README.md.

        Raises:
            ValueError: keep or drop_certain do not fit; an image that is not predicted, not readable or of another size.
        """
        found = {name: self.uncertainty(name, image) for name, image in images.items()}
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise ValueError(f'{len(missing)} images are not predicted, such as {missing[0]}')
        order = sorted(found, key=lambda name: (found[name], name))
        kept = set(kept_of(order, keep, drop_certain))
        ranked = [
            Ranked(k + 1, name, images[name], found[name] or 0.0, name in kept)
            for k, name in enumerate(order)
        ]
        replace_folder(self.folder / 'dataset', lambda new: self._write(new, ranked, card))
        write(self.folder / 'ranking.csv', _table(ranked))
        return ranked

    def _write(self, new: Path, ranked: Sequence[Ranked], card: str) -> None:
        for part in ('images', 'labels'):
            (new / part).mkdir(parents=True)
        for one in ranked:
            if not one.kept:
                continue
            image = decode(one.image.read_bytes())  # as mmcv reads it: upright, 8 bits
            labels = self._predictions / f'{one.name}.png'
            size = cv2.imread(str(labels), cv2.IMREAD_UNCHANGED).shape
            if image is None or image.shape[:2] != size:
                given = 'not readable' if image is None else f'{image.shape[0]}×{image.shape[1]}'
                raise ValueError(
                    f'{one.image} is {given} and its labels {size[0]}×{size[1]} (height × width); the model must predict in the size of '
                    'the image as loaded'
                )
            (new / 'images' / f'{one.name}.png').write_bytes(_png(image))
            shutil.copyfile(labels, new / 'labels' / f'{one.name}.png')
        if card:
            (new / 'README.md').write_text(card, encoding='utf-8')


def kept_of(order: Sequence[str], keep: float, drop_certain: int = 0) -> list[str]:
    """Those of the most certain first that are kept. Raises: ValueError for what does not fit."""
    if not 0 < keep <= 1:
        raise ValueError(f'keep={keep} does not fit; allowed: a share above 0, at most 1')
    # 10 · (1 - 0.9) is 0.99…
    count = max(1, len(order) - math.floor(len(order) * (1 - keep) + 1e-9))
    if not 0 <= drop_certain <= len(order) - count:
        raise ValueError(
            f'drop_certain={drop_certain} does not fit: {count} of {len(order)} images are kept; allowed: 0 to {len(order) - count}'
        )
    return list(order[drop_certain : drop_certain + count])


def names_of(images: Sequence[Path]) -> dict[str, Path]:
    """A name for each file: its own without the ending; of several equal ones the later get ``-2``, ``-3``, …."""
    named: dict[str, Path] = {}
    taken: set[str] = set()  # some file systems do not tell cases apart
    for image in images:
        name, number = image.stem, 1
        while name.lower() in taken:
            number += 1
            name = f'{image.stem}-{number}'
        named[name] = image
        taken.add(name.lower())
    return named


def snippet(folder: str | Path, metainfo: Mapping[str, Any]) -> str:
    """Lines for a config of mmseg that make it train on an exported data set with its own pipeline."""
    classes = list(metainfo['classes'])
    palette = [list(map(int, colour)) for colour in metainfo['palette']]
    return f"""custom_imports = dict(imports=['mmdiffrep'], allow_failed_imports=False)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='mmdiffrep.SegFolder',
        data_root={str(folder)!r},
        img_suffix='.png',
        seg_map_suffix='.png',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes={classes!r}, palette={palette!r}),
        pipeline=_base_.train_dataloader.dataset.pipeline,
    )
)
"""


def _digest(file: Path) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _png(picture: np.ndarray) -> bytes:
    done, content = cv2.imencode('.png', picture)
    if not done:
        raise ValueError(f'{picture.dtype} {picture.shape} cannot be written as PNG')
    return content.tobytes()


def _table(ranked: Sequence[Ranked]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(['rank', 'name', 'image', 'uncertainty', 'kept'])
    writer.writerows(
        [r.rank, r.name, str(r.image), repr(r.uncertainty), int(r.kept)] for r in ranked
    )
    return file.getvalue()
