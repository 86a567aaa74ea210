"""Pairs of images with corresponding points."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS
from mmdiffrep.structures import PairSample

from .images import read_image


@DATASETS.register_module()
class KeypointPairs(Dataset):
    """Items ``dict(inputs=dict(source, target: (3, H, W) uint8 BGR), data_samples=PairSample)``.

    Args:
        data_root: folder of the list.
        ann_file: a JSON list of pairs, each with ``source`` and ``target`` (files below ``img_dir``), ``source_points`` and
            ``target_points`` ([x, y] in pixels), and, where PCK is measured by boxes, ``target_box`` (x1, y1, x2, y2); optional
            ``category``. ``source_path``, ``target_path``, ``target_bounding_box`` are understood, too.
        img_dir: folder of the images, below ``data_root``.
        categories: keep pairs of these.
        max_pairs: the first so many.

    Raises:
        FileNotFoundError: the list or an image.
        ValueError: a pair without a field, or with other numbers of points, by its number and file.
    """

    names = dict(source='source_path', target='target_path', target_box='target_bounding_box', source_box='source_bounding_box')

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        ann_file: str = 'pairs.json',
        img_dir: str = 'images',
        categories: Sequence[str] | None = None,
        max_pairs: int | None = None,
    ) -> None:
        self.root, self.file = Path(data_root), Path(data_root) / ann_file
        self.img_dir = img_dir
        pairs = self.read()
        if categories is not None:
            pairs = [pair for pair in pairs if pair.get('category') in set(categories)]
        self.pairs = pairs[:max_pairs]
        if not self.pairs:
            raise ValueError(f'{self.file} holds no pairs' + (f' of the categories {list(categories)}' if categories else ''))
        for number, pair in enumerate(self.pairs):
            self.check(number, pair)
        found = sorted({str(pair['category']) for pair in self.pairs if pair.get('category')})
        self.metainfo: dict[str, Any] = dict(categories=tuple(found))

    def read(self) -> list[dict[str, Any]]:
        """All pairs, under this project's names."""
        if not self.file.is_file():
            raise FileNotFoundError(f'{self.file}: no such list of pairs')
        return [self.renamed(pair) for pair in json.loads(self.file.read_text(encoding='utf-8'))]

    def renamed(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        """A pair whose fields have other names in the file."""
        other = {theirs: ours for ours, theirs in self.names.items()}
        return {other.get(name, name): value for name, value in pair.items()}

    def check(self, number: int, pair: Mapping[str, Any]) -> None:
        missing = [name for name in ('source', 'target', 'source_points', 'target_points') if name not in pair]
        if missing:
            raise ValueError(f'pair {number} of {pair.get("file", self.file)} lacks {missing}')
        counts = [len(pair[name]) for name in ('source_points', 'target_points')]
        if counts[0] != counts[1] or not counts[0]:
            raise ValueError(
                f'pair {number} of {pair.get("file", self.file)} has {counts[0]} points in the source and {counts[1]} in the target: '
                'the same number is needed, one or more'
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pairs[index]
        images, info = {}, dict(pair_id=index, category=pair.get('category'))
        for side in ('source', 'target'):
            path = self.root / self.img_dir / pair[side]
            image = read_image(path, f'pair {index} of {self.file}')
            images[side] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            info.update({f'{side}_path': str(path), f'{side}_shape': image.shape[:2], f'{side}_box': pair.get(f'{side}_box')})
        sample = PairSample(metainfo=info)
        sample.source_points, sample.target_points = (
            torch.tensor(pair[f'{side}_points'], dtype=torch.float32) for side in ('source', 'target')
        )
        return dict(inputs=images, data_samples=sample)


@DATASETS.register_module()
class SPairDataset(KeypointPairs):
    """SPair-71k (Min et al. 2019) as it is unpacked: ``PairAnnotation/{trn,val,test}/*.json``, ``JPEGImages/CATEGORY/*.jpg``.

    Args:
        split: ``'trn'``, ``'val'`` or ``'test'``.
        kwargs: :class:`KeypointPairs`'s ``categories`` and ``max_pairs``.
    """

    def __init__(self, data_root: str | os.PathLike[str], split: str = 'test', **kwargs: Any) -> None:
        if split not in ('trn', 'val', 'test'):
            raise ValueError(f"split={split!r} is unknown; allowed: 'trn', 'val', 'test'")
        super().__init__(data_root, f'PairAnnotation/{split}', 'JPEGImages', **kwargs)

    def read(self) -> list[dict[str, Any]]:
        files = sorted(self.file.glob('*.json')) if self.file.is_dir() else []
        if not files:
            raise FileNotFoundError(f'{self.file}: no such folder, or no *.json in it; unpack SPair-71k.tar.gz and give its folder')
        pairs = []
        for file in files:
            about = json.loads(file.read_text(encoding='utf-8'))
            fields = ('category', 'src_imname', 'trg_imname', 'src_kps', 'trg_kps', 'src_bndbox', 'trg_bndbox')
            missing = [name for name in fields if name not in about]
            if missing:
                raise ValueError(f'{file} lacks {missing}: damaged? Unpack SPair-71k.tar.gz again')
            category = about['category']
            pairs.append(
                dict(
                    file=str(file), category=category,
                    source=f'{category}/{about["src_imname"]}', target=f'{category}/{about["trg_imname"]}',
                    source_points=about['src_kps'], target_points=about['trg_kps'],
                    source_box=about['src_bndbox'], target_box=about['trg_bndbox'],
                )
            )  # fmt: skip
        return pairs


@DATASETS.register_module()
class PFWillowDataset(KeypointPairs):
    """PF-WILLOW (Ham et al. 2016) with its usual list: ``test_pairs_pf.csv`` of ten points a pair, images below ``data_root``.

    Columns: two file names, then ten x and ten y of the source, ten x and ten y of the target. The box is that of the target's points, as
    is usual there.
    """

    def __init__(self, data_root: str | os.PathLike[str], ann_file: str = 'test_pairs_pf.csv', img_dir: str = '', **kwargs: Any) -> None:
        super().__init__(data_root, ann_file, img_dir, **kwargs)

    def read(self) -> list[dict[str, Any]]:
        pairs = []
        for number, row in _table(self.file):
            if len(row) < 42:
                raise ValueError(f'{self.file}, line {number}, has {len(row)} columns; expected 42: two files, 10 x, 10 y, 10 x, 10 y')
            values = [float(v) for v in row[2:42]]
            source, target = (
                [list(p) for p in zip(values[k : k + 10], values[k + 10 : k + 20])] for k in (0, 20)
            )
            pairs.append(_with_box(row[0], row[1], source, target, Path(row[0]).parent.name))
        return pairs


@DATASETS.register_module()
class PFPascalDataset(KeypointPairs):
    """PF-PASCAL (Ham et al. 2017) with its usual list: ``test_pairs_pf_pascal.csv``; points are joined by ``;``.

    Columns: two file names, the class's number, x and y of the source, x and y of the target. PCK is measured by the image's size there.
    """

    def __init__(
        self, data_root: str | os.PathLike[str], ann_file: str = 'test_pairs_pf_pascal.csv', img_dir: str = '', **kwargs: Any
    ) -> None:
        super().__init__(data_root, ann_file, img_dir, **kwargs)

    def read(self) -> list[dict[str, Any]]:
        pairs = []
        for number, row in _table(self.file):
            if len(row) < 7:
                raise ValueError(f'{self.file}, line {number}, has {len(row)} columns; expected 7: two files, class, x;…, y;…, x;…, y;…')
            lists = [[float(v) for v in cell.split(';') if v] for cell in row[3:7]]
            source, target = ([list(p) for p in zip(x, y)] for x, y in (lists[:2], lists[2:]))
            pairs.append(_with_box(row[0], row[1], source, target, row[2]))
        return pairs


def _table(file: Path) -> list[tuple[int, list[str]]]:
    """Lines of a CSV file behind its first."""
    if not file.is_file():
        raise FileNotFoundError(f'{file}: no such list of pairs')
    with file.open(newline='', encoding='utf-8') as text:
        return [(n, row) for n, row in enumerate(csv.reader(text), 1) if row and n > 1]


def _with_box(source: str, target: str, source_points: list, target_points: list, category: str) -> dict[str, Any]:
    x, y = zip(*target_points)
    return dict(
        source=source, target=target, source_points=source_points, target_points=target_points,
        target_box=[min(x), min(y), max(x), max(y)], category=category,
    )  # fmt: skip
