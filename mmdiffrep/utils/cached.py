"""One switch for kept features: a config's frozen backbone looks at each image once, whatever trains behind it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from .cli import type_name

# transforms of which an image has endlessly many outcomes; mirroring has two
ENDLESS = (
    'RandomCrop', 'RandomResize', 'RandomResizedCrop', 'RandomRotate', 'RandomRotation', 'RandomAffine', 'RandomErasing', 'RandomMosaic',
    'RandomScale', 'PhotoMetricDistortion', 'ColorJitter', 'RandomCutOut', 'Mosaic', 'MixUp', 'CopyPaste', 'AutoAugment', 'RandAugment',
    'TrivialAugmentWide', 'AugMix', 'GaussianBlur', 'ResizeToMultiple', 'RandomChoiceResize', 'CachedMosaic', 'CachedMixUp',
)  # fmt: skip


def with_cache(
    cfg: Config, folder: str | os.PathLike[str], views: int | None = None, dtype: str = 'fp16', limit: float | None = None
) -> Config:
    """Let ``cfg.model.backbone`` be a ``CachedBackbone`` of what it was; its trained adapter stays trained, behind the kept maps.

    Args:
        folder: where maps are kept.
        views: each training image has so many fixed views (``FixedViews``) instead of endlessly many.
        dtype: of the kept maps: ``'fp16'`` or ``'fp32'``.
        limit: GiB that the folder may take; see :class:`CachedBackbone`.

    Raises:
        ValueError: features that may not be kept: of a backbone that is trained, has a trained conditioner, or draws fresh noise; random crops
            without ``views``, under which no image comes twice; a model without a backbone.
    """
    backbone = (cfg.get('model') or {}).get('backbone')
    if not backbone:
        raise ValueError('the config has no model.backbone whose features could be kept')
    kind = type_name(backbone)
    if kind == 'CachedBackbone':
        backbone.folder, backbone.dtype, backbone.limit = str(folder), dtype, limit
    else:
        _check(backbone, kind)
        inner = backbone.to_dict() if hasattr(backbone, 'to_dict') else dict(backbone)
        outer: dict[str, Any] = dict(type='mmdiffrep.CachedBackbone', folder=str(folder), dtype=dtype, limit=limit)
        if inner.get('adapter'):
            outer['adapter'] = inner.pop('adapter')
        cfg.model.backbone = dict(outer, backbone=inner)
    endless = sorted({name for name in _transforms(_training_data(cfg)) if name in ENDLESS})
    if endless and views is None:
        raise ValueError(
            f'the training pipeline has {endless}: an image is another one each time, and keeping features would gain nothing. '
            '--views 4 gives each image four fixed views; or leave these transforms out'
        )
    if views is not None:
        data = cfg.train_dataloader.dataset
        if type_name(data) == 'FixedViews':
            data.views = views
        else:
            cfg.train_dataloader.dataset = dict(type='mmdiffrep.FixedViews', dataset=data, views=views)
    return cfg


def _check(backbone: Any, kind: str) -> None:
    reasons = dict(trainable='is trained (trainable)', conditioner='is told things by a conditioner that is trained')
    found = [why for key, why in reasons.items() if backbone.get(key)]
    noise = dict(backbone.get('noise') or {})
    if noise.get('kind') == 'fresh':
        found.append("draws fresh noise (noise=dict(kind='fresh')); take 'shared' or 'per_image'")
    if kind == 'FeedbackBackbone':
        found.append('has feedback nets that are trained')
    if found:
        raise ValueError(f'features of {kind} may not be kept: it {" and ".join(found)}')


def _training_data(cfg: Config) -> Any:
    return (cfg.get('train_dataloader') or {}).get('dataset') or {}


def _transforms(data: Any) -> Iterator[str]:
    """Names of a data set's transforms, also inside of wrappers."""
    if data.get('type') and type_name(data) == 'FixedViews':
        return
    for key in ('pipeline', 'transforms'):
        for step in data.get(key) or []:
            yield from _names(step)
    inner = data.get('dataset') or []
    for one in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _transforms(one)
    for one in data.get('datasets') or []:
        yield from _transforms(one)


def _names(step: Any) -> Iterator[str]:
    if not step.get('type'):
        return
    yield type_name(step)
    for inner in step.get('transforms') or []:
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _names(one)
