"""CUB-200-2011: birds whose parts are marked, as pairs of images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmdiffrep.registry import DATASETS

from .pairs import KeypointPairs


@DATASETS.register_module()
class CUBPairs(KeypointPairs):
    """Pairs of birds of CUB-200-2011 (Wah et al. 2011) as it is unpacked, with the parts that are visible in both.

    ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt``, ``bounding_boxes.txt``, ``parts/part_locs.txt``, ``classes.txt``,
    ``images/CLASS/*.jpg``. There is no official list of pairs: they are drawn by ``seed``.

    Args:
        data_root: its folder (``CUB_200_2011``).
        split: ``'test'`` or ``'train'``.
        count: pairs.
        same_class: both of one class; else of any two.
        seed: which ones.
        kwargs: :class:`KeypointPairs`'s ``categories`` (class names).
    """

    def __init__(
        self, data_root: str | os.PathLike[str], split: str = 'test', count: int = 1000, same_class: bool = True, seed: int = 0, **kwargs: Any
    ) -> None:
        if split not in ('train', 'test') or count < 1:
            raise ValueError(f"split={split!r}, count={count} do not fit; allowed: 'train' or 'test', a count from 1")
        self.split, self.count, self.same_class, self.seed = split, count, same_class, seed
        super().__init__(data_root, 'images.txt', 'images', **kwargs)

    def read(self) -> list[dict[str, Any]]:
        if not self.file.is_file():
            raise FileNotFoundError(f'{self.file} is not there: unpack CUB_200_2011.tgz and give its folder')
        names = {int(k): name for k, name in self._rows('images.txt')}
        classes = {int(k): int(c) for k, c in self._rows('image_class_labels.txt')}
        titles = {int(k): name for k, name in self._rows('classes.txt')}
        train = {int(k) for k, flag in self._rows('train_test_split.txt') if flag == '1'}
        boxes = {int(k): [float(v) for v in box] for k, *box in self._rows('bounding_boxes.txt')}
        parts: dict[int, dict[int, list[float]]] = {}
        for k, part, x, y, visible in self._rows('parts/part_locs.txt'):
            if visible == '1':
                parts.setdefault(int(k), {})[int(part)] = [float(x), float(y)]
        taken = [k for k in names if (k in train) == (self.split == 'train') and k in parts]
        groups: dict[int, list[int]] = {}
        for k in taken:
            groups.setdefault(classes[k] if self.same_class else 0, []).append(k)
        draws = np.random.default_rng(self.seed)
        groups = {c: group for c, group in groups.items() if len(group) > 1}
        pairs: list[dict[str, Any]] = []
        for _ in range(100 * self.count if groups else 0):
            if len(pairs) == self.count:
                break
            a, b = draws.choice(groups[int(draws.choice(list(groups)))], 2, replace=False).tolist()
            shared = sorted(set(parts[a]) & set(parts[b]))
            if not shared:
                continue
            x, y, w, h = boxes[b]
            pairs.append(
                dict(
                    source=names[a], target=names[b], category=titles[classes[a]], target_box=[x, y, x + w, y + h],
                    source_points=[parts[a][p] for p in shared], target_points=[parts[b][p] for p in shared],
                )
            )  # fmt: skip
        return pairs

    def _rows(self, name: str) -> Iterator[list[str]]:
        file = self.root / name
        if not file.is_file():
            raise FileNotFoundError(f'{file} is not there: unpack CUB_200_2011.tgz again')
        for number, line in enumerate(file.read_text().splitlines(), 1):
            cells = line.split()
            wanted = {'bounding_boxes.txt': 5, 'parts/part_locs.txt': 5}.get(name, 2)
            if len(cells) != wanted:
                raise ValueError(f'{file}, line {number}, has {len(cells)} columns; expected {wanted}')
            yield cells
