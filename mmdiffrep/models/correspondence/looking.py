"""FeatureModel: what all that match images share: backbones look at RGB images, and one map an image comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.matching.components import shared_components
from mmdiffrep.matching.upsampled import METRICS
from mmdiffrep.registry import MODELS

from ..backbones.diffusion_backbone import IMAGENET_MEAN, IMAGENET_STD


class FeatureModel(BaseModel):
    """One feature map of an image.

    Args:
        backbone: config; several maps are normalised each, brought to the finest one's size, and concatenated.
        neck: config of an adapter that makes one map of the backbone's, e.g. ``dict(type='mmdiffrep.LayerMixing')``; its
            ``in_channels`` and ``in_strides`` are filled in.
        second: another backbone, whose normalised maps are joined to the first one's ("A Tale of Two Features", Zhang et al. 2023).
        share: of the second one's in the product, 0 … 1.
        components: the first backbone's maps are reduced to so many channels by components that are shared by a pair of images.
        size: side or (height, width) to which images are resized (bicubic) for the network; None: as they are.
        second_size: the same of the second backbone; default: ``size``.
        metric: ``'cosine'`` or ``'l2'``.
        prompt: told to a network that takes text, e.g. ``'a photo of a {category}'``; needs ``keep_text_encoder=True`` there.

    Raises:
        ValueError: a share outside 0 … 1, another metric, components of fewer than one channel.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any] | None = None,
        second: Mapping[str, Any] | None = None,
        share: float = 0.5,
        components: int | None = None,
        size: int | Sequence[int] | None = None,
        second_size: int | Sequence[int] | None = None,
        metric: str = 'cosine',
        prompt: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=dict(type='mmengine.BaseDataPreprocessor'), init_cfg=init_cfg)
        if not 0 <= share <= 1 or metric not in METRICS or (components is not None and components < 1):
            raise ValueError(
                f'share={share}, metric={metric!r}, components={components} do not fit; allowed: share 0 … 1, metric of {list(METRICS)}, '
                'components from 1 or None'
            )
        self.backbone = MODELS.build(backbone)
        self.neck = self._neck(neck)
        self.second = None if second is None else MODELS.build(second)
        self.share, self.metric, self.components, self.prompt = share, metric, components, prompt
        self.size = _sides(size)
        self.second_size = _sides(second_size) or self.size

    def _neck(self, neck: Mapping[str, Any] | None) -> Any:
        if neck is None:
            return None
        return MODELS.build(
            dict(neck, in_channels=list(self.backbone.out_channels), in_strides=list(self.backbone.out_strides))
        )

    @property
    def device(self) -> torch.device:
        tensors = next(self.parameters(), None), next(self.buffers(), None)
        denoiser = getattr(self.backbone, 'denoiser', None)
        if tensors == (None, None) and denoiser is not None:
            return next(denoiser.parameters()).device
        return next((t.device for t in tensors if t is not None), torch.device('cpu'))

    def features(self, image: Tensor, category: str | None = None) -> Tensor:
        """An RGB image (3, H, W), 0 … 255 -> its map (C, h, w)."""
        return self.of_images([image], category)[0]

    def of_images(self, images: Sequence[Tensor], category: str | None = None) -> list[Tensor]:
        """RGB images (3, H, W), 0 … 255, that are to be compared -> their maps (C, h, w). Shared components are those of all of them."""
        looks = [self._maps_of(image, category) for image in images]
        if self.components is not None:
            # each tap by itself, as its channels vary in their own range
            for tap in range(len(looks[0])):
                reduced = shared_components([maps[tap][0] for maps in looks], self.components)
                for maps, m in zip(looks, reduced):
                    maps[tap] = m[None]
        found = [joined(maps, self.metric) for maps in looks]
        if self.second is not None:
            found = [self._with_second(m, image) for m, image in zip(found, images)]
        return [m[0] for m in found]

    def _maps_of(self, image: Tensor, category: str | None) -> list[Tensor]:
        x = self._input(image, self.size)
        maps = self._look(self.backbone, x, category)
        return list(maps if self.neck is None else self.neck(maps, (x.shape[-2], x.shape[-1])))

    def _with_second(self, found: Tensor, image: Tensor) -> Tensor:
        other = joined(self._look(self.second, self._input(image, self.second_size), None), 'cosine')
        size = max(found.shape[-2:], other.shape[-2:], key=lambda s: s[0] * s[1])
        parts = [F.normalize(_resized(m, size), dim=1) for m in (found, other)]
        return torch.cat([parts[0] * (1 - self.share) ** 0.5, parts[1] * self.share**0.5], 1)

    def _input(self, image: Tensor, size: tuple[int, int] | None) -> Tensor:
        if image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(f'an image of shape {tuple(image.shape)} was given; allowed: RGB (3, H, W)')
        x = image[None].to(self.device).float()
        if size is not None and tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size, mode='bicubic', antialias=True).clamp(0, 255)
        return x

    def _look(self, backbone: Any, rgb: Tensor, category: str | None) -> tuple[Tensor, ...]:
        """Maps of RGB images in 0 … 255, normalised as the backbone expects."""
        inner = getattr(backbone, 'backbone', backbone)  # of a CachedBackbone
        mean, std = (getattr(inner, name, None) for name in ('image_mean', 'image_std'))
        if mean is None:
            mean, std = (rgb.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        x = ((rgb.flip(1) if getattr(inner, 'bgr', False) else rgb) - mean) / std
        with contextlib.ExitStack() as stack:
            if self.prompt is not None and hasattr(backbone, 'prompted'):
                text = self.prompt.format(category=category or 'thing')
                stack.enter_context(backbone.prompted([text] * len(x)))
            return tuple(backbone(x))


def as_rgb(array: np.ndarray) -> Tensor:
    """An RGB array (H, W, 3) uint8 -> (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def joined(maps: Sequence[Tensor], metric: str) -> Tensor:
    """One map (B, C, h, w) of several: a single one as it is; several at the finest size, each of unit length."""
    if len(maps) == 1:
        return maps[0]
    size = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
    parts = [_resized(m, size) for m in maps]
    return torch.cat([F.normalize(m, dim=1) if metric == 'cosine' else m for m in parts], 1)


def _resized(m: Tensor, size: Any) -> Tensor:
    return m if m.shape[-2:] == tuple(size) else F.interpolate(m, tuple(size), mode='bilinear', align_corners=False)


def _sides(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)
