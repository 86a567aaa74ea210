"""InstanceCrops: one labelled crop for each object of a COCO instances file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS

from .coco import (
    Box,
    as_tensor,
    check_size,
    checked_sources,
    read_image,
    read_objects,
    square_crop,
    squashed,
)


@DATASETS.register_module()
class InstanceCrops(Dataset):
    """Squares about objects: ``dict(inputs=uint8 tensor (3, size, size), BGR, label=int)``.

    The label counts ``class_names``. What lies around an object, and in front of it, is in its crop too.

    Args:
        sources: one or several ``dict(ann_file=…, img_dir=…)``: an instances file in COCO format and its pictures' folder.
        size: side of the square in pixels.
        class_names: the categories by name, in the labels' order; by default those of the first file.
        min_side: objects whose box has a shorter side are left out.
        context: the square is so many times the box's longer side.

    Raises:
        FileNotFoundError, ValueError: what was given, what is allowed, the cure.
    """

    def __init__(
        self,
        sources: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        size: int,
        class_names: Sequence[str] | None = None,
        min_side: int = 8,
        context: float = 1.25,
    ) -> None:
        check_size(size)
        if not context > 0:
            raise ValueError(f'context={context!r} does not fit; allowed: above 0')
        self.size, self.context = size, context
        self.class_names = None if class_names is None else list(class_names)
        self.items: list[tuple[str, Box, int]] = []  # path, box, label
        for source in checked_sources(sources, ('ann_file', 'img_dir')):
            names, objects = read_objects(source['ann_file'], source['img_dir'], min_side)
            self.class_names = self.class_names or names
            unknown = sorted(set(names) - set(self.class_names))
            if unknown:
                raise ValueError(
                    f'{source["ann_file"]} has {len(unknown)} categories that are not among the {len(self.class_names)} class_names, '
                    f'for example {unknown[:3]}'
                )
            self.items += [(o.path, o.box, self.class_names.index(o.name)) for o in objects]
        if not self.items:
            raise ValueError(
                f'sources={sources} hold no object of at least {min_side} × {min_side} pixels'
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> dict[str, Any]:
        path, box, label = self.items[number]
        crop = square_crop(read_image(path), box, self.context)
        return dict(inputs=as_tensor(squashed(crop, self.size)), label=label)
