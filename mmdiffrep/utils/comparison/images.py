"""The images on which a model's cost is measured: drawn ones of the config's size, or the first ones of its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.runner import Runner

# transforms that set the size, what they call it, and whether they say (width, height)
SIZING = {
    'RandomCrop': ('crop_size', False),
    'Resize': ('scale', True),
    'RandomResize': ('scale', True),
    'ResizeShortestEdge': ('scale', False),
}

THINGS, STUFF = 10, 4  # segments of a drawn image


def image_size(cfg: Any) -> tuple[int, int] | None:
    """The (height, width) that a config is made for; None where it does not say.

    It is ``crop_size``, or the data preprocessor's ``size``, or the first crop or resize of the training's, then of the
    evaluation's pipeline.
    """
    model = cfg.get('model') or {}
    places = [cfg.get('crop_size'), (model.get('data_preprocessor') or {}).get('size')]
    places += [found for _, found in crops(cfg.get('train_dataloader'))]
    for loader in ('val_dataloader', 'test_dataloader'):
        places += [found for _, found in crops(cfg.get(loader))]
    return next((size for place in places if (size := _pair(place)) is not None), None)


def crops(loader: Any) -> list[tuple[str, tuple[int, int]]]:
    """The transforms of a data loader's pipeline that set the size, with (height, width)."""
    found = []
    for step in pipeline(loader):
        name = str(step.get('type', '')).rpartition('.')[2]
        key, swapped = SIZING.get(name, ('', False))
        size = _pair(step.get(key)) if key else None
        if size is not None:
            found.append((name, size[::-1] if swapped else size))
    return found


def pipeline(loader: Any) -> list[Mapping[str, Any]]:
    """The transforms of a data loader's innermost data set."""
    return list(innermost((loader or {}).get('dataset')).get('pipeline') or [])


def innermost(dataset: Any) -> Mapping[str, Any]:
    """The data set's config inside of wrappers such as RepeatDataset; empty where there is none."""
    while isinstance(dataset, Mapping) and 'dataset' in dataset:
        own = {k: dataset[k] for k in ('num_labels', 'subset_seed') if dataset.get(k) is not None}
        dataset = dataset['dataset']
        if isinstance(dataset, Mapping):
            dataset = {**dataset, **own}
    return dataset if isinstance(dataset, Mapping) else {}


def drawn_batch(scope: str, size: tuple[int, int], count: int) -> dict[str, Any]:
    """Images of noise with the data samples that mmseg's and mmdet's models ask for.

    Raises: ValueError for another scope: how its models take images is not known.
    """
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample as Sample
    elif scope == 'mmdet':
        from mmdet.structures import DetDataSample as Sample
    else:
        raise ValueError(
            f'images can be drawn for models of mmseg and mmdet, not for default_scope {scope!r}'
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    shape = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), size)
    shape.update(scale_factor=(1.0, 1.0), flip=False)
    return dict(
        inputs=list(images),
        data_samples=[Sample(metainfo=dict(shape, img_id=i, img_path='')) for i in range(count)],
    )


def first_batch(loader: Mapping[str, Any], count: int | None = None) -> tuple[Any, Any]:
    """(a data loader in this process, its first batch); ``count`` replaces the config's batch size."""
    settings = dict(loader, num_workers=0, persistent_workers=False)
    for key in ('prefetch_factor', 'multiprocessing_context'):
        settings.pop(key, None)
    if count is not None:
        settings['batch_size'] = count
    built = Runner.build_dataloader(settings, seed=0)
    return built, next(iter(built))


def shape_of(batch: Any) -> tuple[int, int] | None:
    """(height, width) of a batch's first image; None where it holds none."""
    inputs = batch.get('inputs') if isinstance(batch, Mapping) else None
    if isinstance(inputs, Sequence) and inputs:
        inputs = inputs[0]
    if isinstance(inputs, torch.Tensor) and inputs.ndim >= 3:
        return int(inputs.shape[-2]), int(inputs.shape[-1])
    return None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int):
        return value, value
    if isinstance(value, (list, tuple)) and len(value) == 2:
        if all(isinstance(side, int) for side in value):
            return tuple(value)  # type: ignore[return-value]
    return None


def drawn_targets(samples: list[Any], size: int, things: int, classes: int) -> None:
    """Give data samples of square images instances (rectangles) and a map of stuff (bands), of drawn classes."""
    import numpy as np
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    draw = np.random.default_rng(0)
    for sample in samples:
        stuff = draw.choice(np.arange(things, classes), min(STUFF, classes - things), replace=False)
        seg = np.full((size, size), 255)
        for rows, label in zip(np.array_split(np.arange(size), max(len(stuff), 1)), stuff):
            seg[rows] = label
        labels = draw.choice(things, THINGS if things else 0)
        masks = np.zeros((len(labels), size, size), np.uint8)
        for mask, label in zip(masks, labels):
            y, x = draw.integers(0, size * 3 // 4, 2)
            height, width = draw.integers(size // 8, size // 4, 2)
            mask[y : y + height, x : x + width] = 1
            seg[mask > 0] = label
        sample.gt_instances = InstanceData(
            labels=torch.from_numpy(labels).long(), masks=BitmapMasks(masks, size, size), bboxes=torch.zeros(len(labels), 4)
        )
        sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(seg)[None].long())
