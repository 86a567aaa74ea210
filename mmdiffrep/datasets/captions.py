"""ImageCaptions: images and regions with captions, for contrastive pre-training."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS

from .coco import (
    Box,
    as_tensor,
    check_size,
    checked_sources,
    image_paths,
    read_coco,
    read_image,
    read_objects,
    square_crop,
    squashed,
)


@dataclass
class Captioned:
    """A picture, or a box in it, and what can be said of it."""

    path: str
    captions: list[str]
    box: Box | None = None


@DATASETS.register_module()
class ImageCaptions(Dataset):
    """Image–caption pairs: ``dict(inputs=uint8 tensor (3, size, size), BGR, caption=str)``.

    A caption tells of the whole picture, so that nothing is cropped from it by chance: it is stretched to a square.

    Args:
        sources: one or several ``dict(ann_file=…, img_dir=…, regions=None, repeat=1)``: a captions file in COCO format, its
            pictures' folder, and an instances file in COCO format whose boxes become pairs of their own; ``repeat`` counts the
            whole pictures more than once.
        size: side of the square in pixels.
        region_templates: a region's captions; ``{name}`` is its category, other fields are its annotation's ``attributes``.
        min_side: boxes with a shorter side are left out.
        context: a region's square is so many times its box's longer side, drawn from this range.
        flip: mirror half of them. Not for captions that tell left from right.
        on_error: an unreadable image is named and ``'raise'``: fatal, or ``'skip'``: left out.
        random: False gives the first caption, no flips, and the middle of ``context``.
        cache: keep decoded pictures in memory, each from its first use on. For data sets that fit there.

    Raises:
        FileNotFoundError, ValueError: what was given, what is allowed, the cure.
    """

    def __init__(
        self,
        sources: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        size: int,
        region_templates: Sequence[str] = ('{name}',),
        min_side: int = 8,
        context: Sequence[float] = (1.0, 1.5),
        flip: bool = True,
        on_error: str = 'raise',
        random: bool = True,
        cache: bool = False,
    ) -> None:
        check_size(size, on_error)
        self.cache: dict[str, np.ndarray] | None = {} if cache else None
        low, high = context if len(context) == 2 else (0.0, 0.0)
        if not 0 < low <= high:
            raise ValueError(
                f'context={tuple(context)} does not fit; allowed: (low, high) with 0 < low <= high'
            )
        self.size, self.context, self.flip = size, (low, high), flip
        self.on_error, self.random = on_error, random
        self.items: list[Captioned] = []
        for source in checked_sources(sources, ('ann_file', 'img_dir'), ('regions', 'repeat')):
            repeat = source.get('repeat', 1)
            if not isinstance(repeat, int) or repeat < 1:
                raise ValueError(
                    f'repeat={repeat!r} does not fit: allowed is a whole number, at least 1'
                )
            self.items += _pictures(source) * repeat
            if source.get('regions') is not None:
                self.items += _regions(source, region_templates, min_side)
        if not self.items:
            raise ValueError(f'no image of sources={sources} has a caption')

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        for offset in range(len(self)):
            item = self.items[(number + offset) % len(self)]
            image = self._read(item.path)
            if image is not None:
                return self._pair(image, item)
        raise ValueError('none of the images can be read')

    def _read(self, path: str) -> np.ndarray | None:
        if self.cache is None:
            return read_image(path, self.on_error)
        if path not in self.cache:
            image = read_image(path, self.on_error)
            if image is None:
                return None
            self.cache[path] = image
        return self.cache[path]

    def _pair(self, image: np.ndarray, item: Captioned) -> dict[str, Any]:
        """Random numbers come from torch: workers are seeded, and resuming restores them."""
        u = torch.rand(5).tolist() if self.random else [0.0, 1.0, 0.5, 0.5, 0.5]
        if item.box is not None:
            low, high = self.context
            context = low + u[2] * (high - low)
            # not so far that the box is left
            reach = max(context - 1, 0) / 2
            shift = [(2 * v - 1) * reach for v in u[3:]]
            image = square_crop(image, item.box, context, shift)
        image = squashed(image, self.size)
        if self.flip and u[1] < 0.5:
            image = image[:, ::-1]
        caption = item.captions[int(u[0] * len(item.captions) * 0.999999)]
        return dict(inputs=as_tensor(image), caption=caption)


def _pictures(source: Mapping[str, Any]) -> list[Captioned]:
    content = read_coco(source['ann_file'])
    paths = image_paths(content, source['img_dir'])
    captions = defaultdict(list)
    for annotation in content['annotations']:
        if not isinstance(annotation.get('caption'), str):
            raise ValueError(
                f'{source["ann_file"]} holds no captions: annotation {annotation.get("id")} has none'
            )
        captions[annotation['image_id']].append(annotation['caption'])
    return [Captioned(path, captions[key]) for key, path in paths.items() if captions[key]]


def _regions(source: Mapping[str, Any], templates: Sequence[str], min_side: int) -> list[Captioned]:
    if isinstance(templates, str) or not templates:
        raise ValueError(f'region_templates={templates!r} does not fit; allowed: a list of texts')
    _, objects = read_objects(source['regions'], source['img_dir'], min_side)
    return [
        Captioned(o.path, [_filled(t, {**o.attributes, 'name': o.name}) for t in templates], o.box)
        for o in objects
    ]


def _filled(template: str, words: Mapping[str, str]) -> str:
    unknown = [
        field
        for _, field, _, _ in string.Formatter().parse(template)
        if field is not None and field not in words
    ]
    if unknown:
        raise ValueError(
            f'region_templates: {template!r} has unknown fields {unknown}; allowed: {sorted(words)}'
        )
    return template.format(**words)
