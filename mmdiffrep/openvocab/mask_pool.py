"""Regions named by a convolutional CLIP, without training: its dense features averaged over each mask.

Yu et al., Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP (FC-CLIP), NeurIPS 2023, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .clip import load_clip
from .clip_vit import Size, frozen, normalisation, scale_of
from .mask_clip import MaskAttentionClip, MaskClassifier, content_hash, pair
from .tokenizer import open_clip

PROBE = 64  # pixels: two by two cells of a network of stride 32


class MaskPoolClip(MaskClassifier):
    """Mask pooling of a convolutional CLIP: features averaged over a mask, then through CLIP's own norm and projection.

    A full mask gives CLIP's own image embedding. A cell of the feature map belongs to a mask if its probability there, averaged, is at
    least 0.5; a mask too small to reach that anywhere weighs the cells by its probabilities. A mask of zeros pools zeros.

    Args:
        name: as ``load_clip`` takes it (``'convnext_large_d_320'``); or an open_clip model in memory (copied). Its image tower must be a
            convolutional network by timm with average pooling.
        pretrained: open_clip's tag or a weight file, see ``load_clip``.
        image_size: pixels, or (height, width), that images are resized to; multiples of the network's stride. None: each image's own
            size, rounded to multiples, as in the paper. Masks are resized with their image.

    Raises:
        FileNotFoundError: see ``load_clip``.
        ValueError: the tower is no such network, or the size does not fit.
    """

    def __init__(
        self,
        name: str | Path | nn.Module,
        pretrained: str | None = None,
        image_size: int | Sequence[int] | None = None,
        device: str | torch.device = 'cpu',
    ) -> None:
        model: Any = name if isinstance(name, nn.Module) else load_clip(name, pretrained)[0]
        self.module = frozen(model.visual)
        self.stride, self.width = _probed(self.module)
        self.mean, self.std = normalisation(self.module)
        self.logit_scale = scale_of(model)
        self.size = None if image_size is None else pair(image_size, (self.stride, self.stride))
        self.fingerprint = content_hash(self, self.size)
        self.to(device)

    def embed(self, images: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        visual: Any = self.module
        found = []
        for image, mask in zip(images, masks):
            size = self.size or self._own_size(image)
            features = visual.trunk.forward_features(self.resized(image, size)[None])[0]
            found.append(
                F.normalize(_head(visual, mask_pool(features, mask)), dim=-1)
                if len(mask)
                else features.new_empty(0, self.width)
            )
        return found

    def _own_size(self, image: Tensor) -> Size:
        height, width = (max(1, round(s / self.stride)) * self.stride for s in image.shape[-2:])
        return height, width


def mask_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Features (C, h, w) averaged over masks (Q, …, …), probabilities: (Q, C)."""
    masks = F.interpolate(masks[None], features.shape[-2:], mode='bilinear', antialias=True)[0]
    masks = masks.flatten(1)
    hard = (masks >= 0.5).to(masks)
    weights = torch.where(hard.any(1, keepdim=True), hard, masks.clamp(min=0))
    total = weights.sum(1, keepdim=True)
    return weights @ features.flatten(1).T / total.clamp(min=1e-8)


def _head(visual: Any, pooled: Tensor) -> Tensor:
    """Pooled features (Q, C) through CLIP's norm and projection: an average over one cell is the cell."""
    return visual.head(visual.trunk.forward_head(pooled[:, :, None, None]))


def _probed(visual: Any) -> tuple[int, int]:
    """Stride and width of a tower. ValueError unless its pooling is an average of a map of features."""
    name = type(getattr(visual, 'trunk', visual)).__name__
    cure = 'Take a ConvNeXt CLIP of open_clip, such as convnext_large_d_320, or MaskAttentionClip with a ViT'
    if not isinstance(visual, open_clip().timm_model.TimmModel):
        raise ValueError(
            f'mask pooling needs a convolutional image tower by timm, this CLIP has a {name}. {cure}'
        )
    try:
        with torch.no_grad():
            features = visual.trunk.forward_features(torch.zeros(1, 3, PROBE, PROBE))
            maps = features.dim() == 4 and features.shape[1] == visual.trunk.num_features
            # any map will do; a fixed one keeps the random numbers of others as they are
            cells = torch.linspace(-1, 1, features[:, :, :2, :2].numel()).view_as(
                features[:, :, :2, :2]
            )
            whole = visual.head(visual.trunk.forward_head(cells))
            average = _head(visual, cells.mean((-2, -1)))
            fits = maps and torch.allclose(whole, average, atol=1e-4, rtol=1e-3)
    except Exception as error:  # a network that is not made for this fails in its own ways
        raise ValueError(
            f'mask pooling cannot read the features of {name} ({type(error).__name__}: {str(error)[:80]}). {cure}'
        ) from error
    if not fits:
        raise ValueError(
            f'mask pooling needs a map of features that CLIP averages, {name} gives {tuple(features.shape)} and pools otherwise. {cure}'
        )
    return PROBE // features.shape[-1], whole.shape[-1]


KINDS: dict[str, type[MaskClassifier]] = dict(attention=MaskAttentionClip, pool=MaskPoolClip)


def build_mask_classifier(config: Mapping[str, Any] | MaskClassifier | None) -> Any:
    """``dict(kind='attention'|'pool', …)`` with the class's arguments; one that exists already, and None, come back.

    Raises:
        ValueError: an unknown kind or argument.
    """
    if config is None or isinstance(config, MaskClassifier):
        return config
    options = dict(config)
    kind = options.pop('kind', None)
    if kind not in KINDS:
        raise ValueError(f'kind={kind!r} of a mask classifier is unknown; allowed: {list(KINDS)}')
    try:
        return KINDS[kind](**options)
    except TypeError as error:
        raise ValueError(f'{dict(config)} does not fit {KINDS[kind].__name__}: {error}') from error
