"""PointMatcher: a frozen backbone looks at both images, and points are found by their features (DIFT)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.matching import Matches, match_points
from mmdiffrep.matching.points import flip_adaptive
from mmdiffrep.registry import MODELS
from mmdiffrep.structures import PairSample

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@MODELS.register_module()
class PointMatcher(BaseModel):
    """Points of the source found in the target, as published by Tang et al., "Emergent Correspondence from Image Diffusion", NeurIPS 2023.

    Nothing is trained. Features are never resized to the image, with the same answer.

    Args:
        backbone: config; several maps are normalised each, brought to the finest one's size, and concatenated.
        second: another backbone, whose normalised maps are joined to the first one's.
        share: of the second one's in the product, 0 … 1.
        size: side or (height, width) to which images are resized (bicubic) for the network; None: as they are.
        metric: ``'cosine'`` or ``'l2'``.
        window, temperature: of a soft place around the best pixel; None: the pixel.
        flip: also look at the mirrored source, and take what fits better.
        prompt: told to a network that takes text, e.g. ``'a photo of a {category}'``; needs ``keep_text_encoder=True`` there.

    Raises:
        ValueError: a share outside 0 … 1; points outside their image; no points.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        second: Mapping[str, Any] | None = None,
        share: float = 0.5,
        size: int | Sequence[int] | None = None,
        metric: str = 'cosine',
        window: int | None = None,
        temperature: float = 0.02,
        flip: bool = False,
        prompt: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=dict(type='mmengine.BaseDataPreprocessor'), init_cfg=init_cfg)
        if not 0 <= share <= 1:
            raise ValueError(f'share={share} does not fit; allowed: 0 … 1')
        self.backbone = MODELS.build(backbone)
        self.second = None if second is None else MODELS.build(second)
        self.share, self.metric, self.window, self.temperature = share, metric, window, temperature
        self.size = (size, size) if isinstance(size, int) else size
        self.flip, self.prompt = flip, prompt

    def forward(self, inputs: Mapping[str, Any], data_samples: Any = None, mode: str = 'predict') -> list[PairSample]:
        """A batch of pairs -> their samples with ``pred_points`` and ``pred_scores``."""
        if mode != 'predict':
            raise ValueError(f"mode={mode!r}: nothing is trained here; allowed: 'predict'")
        for source, target, sample in zip(inputs['source'], inputs['target'], data_samples):
            found = self.match(source.flip(0), target.flip(0), sample.source_points, sample.metainfo.get('category'))
            sample.pred_points, sample.pred_scores = found.points.cpu(), found.scores.cpu()
        return data_samples

    @torch.no_grad()
    def match(self, source: Tensor, target: Tensor, points: Any, category: str | None = None) -> Matches:
        """RGB images (3, H, W), 0 … 255, and points (n, 2) of the source -> where they lie in the target."""
        maps = [self.features(image, category) for image in (source, target)]
        sizes = [(image.shape[-2], image.shape[-1]) for image in (source, target)]
        options: dict[str, Any] = dict(metric=self.metric, window=self.window, temperature=self.temperature)
        if self.flip:
            mirrored = self.features(source.flip(-1), category)
            return flip_adaptive(maps[0], mirrored, maps[1], points, sizes[0], sizes[1], **options)
        return match_points(maps[0], maps[1], points, sizes[0], sizes[1], **options)

    @torch.no_grad()
    def features(self, image: Tensor, category: str | None = None) -> Tensor:
        """An RGB image (3, H, W), 0 … 255 -> its map (C, h, w)."""
        device = next(iter(self.buffers()), torch.zeros(1)).device
        x = image[None].to(device).float()
        if self.size is not None and tuple(x.shape[-2:]) != tuple(self.size):
            x = F.interpolate(x, tuple(self.size), mode='bicubic', antialias=True).clamp(0, 255)
        found = joined(self._look(self.backbone, x, category), self.metric)
        if self.second is not None:
            other = joined(self._look(self.second, x, None), 'cosine')
            size = max(found.shape[-2:], other.shape[-2:], key=lambda s: s[0] * s[1])
            parts = [F.normalize(_resized(m, size), dim=1) for m in (found, other)]
            found = torch.cat([parts[0] * (1 - self.share) ** 0.5, parts[1] * self.share**0.5], 1)
        return found[0]

    def _look(self, backbone: Any, rgb: Tensor, category: str | None) -> tuple[Tensor, ...]:
        """Maps of RGB images in 0 … 255, normalised as the backbone expects."""
        mean, std = (getattr(backbone, name, None) for name in ('image_mean', 'image_std'))
        if mean is None:
            mean, std = (rgb.new_tensor(values).view(3, 1, 1) for values in IMAGENET)
        x = ((rgb.flip(1) if getattr(backbone, 'bgr', False) else rgb) - mean) / std
        with contextlib.ExitStack() as stack:
            if self.prompt is not None and hasattr(backbone, 'prompted'):
                text = self.prompt.format(category=category or 'thing')
                stack.enter_context(backbone.prompted([text] * len(x)))
            return tuple(backbone(x))


def joined(maps: Sequence[Tensor], metric: str) -> Tensor:
    """One map (B, C, h, w) of several: a single one as it is; several at the finest size, each of unit length."""
    if len(maps) == 1:
        return maps[0]
    size = max((m.shape[-2:] for m in maps), key=lambda s: s[0] * s[1])
    parts = [_resized(m, size) for m in maps]
    return torch.cat([F.normalize(m, dim=1) if metric == 'cosine' else m for m in parts], 1)


def _resized(m: Tensor, size: Any) -> Tensor:
    return m if m.shape[-2:] == tuple(size) else F.interpolate(m, tuple(size), mode='bilinear', align_corners=False)
