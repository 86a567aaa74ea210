"""ImageClassification: images with one class each, through torchvision's transforms."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS
from mmdiffrep.structures import ClassSample

from .class_sources import open_source
from .images import resize_short_side


@DATASETS.register_module()
class ImageClassification(Dataset):
    """Items ``dict(inputs=(3, H, W) uint8 BGR, data_samples=ClassSample)``, as mmengine's ``ImgDataPreprocessor`` takes them.

    Args:
        data_root: a folder or zip file of CLASS/IMAGE, or the folder of CIFAR-10's or CIFAR-100's binary files.
        part: ``'train'`` or ``'test'`` of CIFAR; else the folder in ``data_root`` that holds the classes (``'train'``, ``'val'``).
        first, last: keep the images of each class from number ``first`` up to ``last`` (not included), in the order of their names:
            how a split is held out of data that have none.
        num_labels: so many of those that are left, drawn as evenly from the classes as it goes; None: all.
        subset_seed: which ones. Those of N are among those of N + 1.
        size: (height, width) or a side to which images are resized if they differ; None: as they are.
        short_side: the short side is resized to so many pixels before ``transforms``; None: not.
        transforms: of ``torchvision.transforms.v2`` by name, e.g. ``[dict(type='RandomCrop', size=32, padding=4),
            dict(type='RandomHorizontalFlip')]``; they draw from torch's generator.
        classes: names in the order of their numbers, if they are to differ from those found (same number).

    Raises:
        FileNotFoundError: no such data.
        ValueError: a class without images, images in no class folder, files cut short, an unknown transform, too few images; at
            reading, a corrupt image by name.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        part: str | None = None,
        first: int = 0,
        last: int | None = None,
        num_labels: int | None = None,
        subset_seed: int = 0,
        size: int | Sequence[int] | None = None,
        short_side: int | None = None,
        transforms: Sequence[Mapping[str, Any]] = (),
        classes: Sequence[str] | None = None,
    ) -> None:
        self.source = open_source(data_root, part)
        found = self.source.classes
        if classes is not None and len(classes) != len(found):
            raise ValueError(f'classes names {len(classes)}, and {data_root} has {len(found)}: {found[:5]} …')
        self.metainfo: dict[str, Any] = dict(classes=tuple(classes or found))
        self.numbers = _kept(np.array(self.source.labels), first, last, num_labels, subset_seed, found, str(data_root))
        self.size = (size, size) if isinstance(size, int) else size
        self.short_side = short_side
        self.transforms = build_transforms(transforms)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> list[int]:
        """Each item's class."""
        return [self.source.labels[i] for i in self.numbers]

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = self.numbers[index]
        image = self.source.read(number)
        if self.short_side is not None:
            image = resize_short_side(image, self.short_side)
        inputs = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.size is not None and tuple(inputs.shape[1:]) != tuple(self.size):
            from torchvision.transforms.v2 import functional

            inputs = functional.resize(inputs, list(self.size), antialias=True)
        for transform in self.transforms:
            inputs = transform(inputs)
        sample = ClassSample(metainfo=dict(img_path=self.source.names[number], img_shape=tuple(inputs.shape[1:])))
        sample.gt_label = self.source.labels[number]
        return dict(inputs=inputs, data_samples=sample)


def build_transforms(configs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Transforms of ``torchvision.transforms.v2`` from ``dict(type=name, …)``."""
    from torchvision.transforms import v2

    built = []
    for config in configs:
        settings = dict(config)
        name = settings.pop('type', None)
        maker = getattr(v2, str(name), None)
        if maker is None:
            raise ValueError(
                f'transform {dict(config)} does not fit; allowed: dict(type=NAME, …) with a NAME of torchvision.transforms.v2, '
                'such as RandomCrop, RandomResizedCrop, RandomHorizontalFlip, Resize, CenterCrop'
            )
        built.append(maker(**settings))
    return built


def _kept(
    labels: np.ndarray, first: int, last: int | None, num_labels: int | None, subset_seed: int, classes: Sequence[str], where: str
) -> list[int]:
    """Numbers of the images that are taken, ascending."""
    groups = []
    for k, name in enumerate(classes):
        group = np.flatnonzero(labels == k)[first:last]
        if not len(group):
            raise ValueError(
                f'class {name!r} of {where} has {int((labels == k).sum())} images, none of them from number {first} to {last}: '
                'give fewer with first and last'
            )
        groups.append(group)
    count = sum(map(len, groups))
    if num_labels is None:
        return sorted(int(i) for group in groups for i in group)
    if not len(classes) <= num_labels <= count:
        raise ValueError(
            f'num_labels={num_labels} was asked of {count} images of {len(classes)} classes; allowed: {len(classes)} to {count}'
        )
    draws = np.random.default_rng(subset_seed)
    # round after round one image of each class, the classes of a round in an order of its own
    orders = [draws.permutation(group) for group in groups]
    drawn = [
        int(orders[k][turn])
        for turn in range(max(map(len, orders)))
        for k in draws.permutation(len(orders))
        if turn < len(orders[k])
    ]
    return sorted(drawn[:num_labels])
