"""PointMatcher: points of one image found in another by a backbone's features (DIFT); a neck can be trained on pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiffrep.matching import Matches
from mmdiffrep.matching.points import check_points, match_maps
from mmdiffrep.registry import MODELS

from .looking import FeatureModel


@MODELS.register_module()
class PointMatcher(FeatureModel):
    """Points of the source found in the target, as published by Tang et al., "Emergent Correspondence from Image Diffusion", NeurIPS 2023.

    Features are never resized to the image, with the same answer. Without a neck nothing is trained; with one, pairs with points train it:
    each point of the source must be most alike to the cell of the target that its partner lies in, among all of the target's cells,
    and the other way round (cross entropy of scaled cosines, after Luo et al., "Diffusion Hyperfeatures", NeurIPS 2023, section 4).

    Args:
        window, temperature: of a soft place around the best pixel; None: the pixel.
        flip: also look at the mirrored source, and take what fits better.
        backbone, neck, second, size, prompt, ...: :class:`FeatureModel`'s.

    Raises:
        ValueError: points outside their image; no points.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        window: int | None = None,
        temperature: float = 0.02,
        flip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.window, self.temperature, self.flip = window, temperature, flip
        # CLIP's, learned with a neck
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07))) if self.neck is not None else None

    def forward(self, inputs: Mapping[str, Any], data_samples: Any = None, mode: str = 'predict') -> Any:
        """A batch of pairs -> ``predict``: their samples with ``pred_points`` and ``pred_scores``; ``loss``: ``loss_points``."""
        pairs = zip(inputs['source'], inputs['target'], data_samples)
        if mode == 'loss':
            if self.neck is None:
                raise ValueError("nothing is trained here without a neck: give one, e.g. neck=dict(type='mmdiffrep.LayerMixing')")
            losses = [
                self.pair_loss(source.flip(0), target.flip(0), sample.source_points, sample.target_points)
                for source, target, sample in pairs
            ]
            return dict(loss_points=torch.stack(losses).mean())
        if mode != 'predict':
            raise ValueError(f"mode={mode!r} is unknown; allowed: 'predict', 'loss'")
        for source, target, sample in pairs:
            found = self.match(source.flip(0), target.flip(0), sample.source_points, sample.metainfo.get('category'))
            sample.pred_points, sample.pred_scores = found.points.cpu(), found.scores.cpu()
        return data_samples

    @torch.no_grad()
    def match(self, source: Tensor, target: Tensor, points: Any, category: str | None = None) -> Matches:
        """RGB images (3, H, W), 0 … 255, and points (n, 2) of the source -> where they lie in the target."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in (source, target)]
        points = check_points(points, sizes[0])  # before the network looks
        images = [source, target, *([source.flip(-1)] if self.flip else [])]
        maps = self.of_images(images, category)
        options: dict[str, Any] = dict(metric=self.metric, window=self.window, temperature=self.temperature)
        return match_maps(maps, points, sizes, **options)

    def pair_loss(self, source: Tensor, target: Tensor, source_points: Tensor, target_points: Tensor) -> Tensor:
        """What a pair costs the neck: RGB images (3, H, W), points (n, 2) of each -> a number."""
        images, points = (source, target), (source_points, target_points)
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        points = tuple(check_points(p, size) for p, size in zip(points, sizes))
        maps = [F.normalize(m, dim=0) for m in self.of_images(images)]
        assert self.log_scale is not None
        scale = self.log_scale.exp().clamp(max=100)
        losses = []
        for here, there in ((0, 1), (1, 0)):
            vectors = F.normalize(_at(maps[here], points[here], sizes[here]), dim=1)
            logits = scale * vectors @ maps[there].flatten(1)
            losses.append(F.cross_entropy(logits, _cells(points[there], maps[there].shape[-2:], sizes[there]).to(logits.device)))
        return torch.stack(losses).mean()


def _at(m: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Features (n, C) of a map (C, h, w) at points (n, 2) of its image (H, W)."""
    height, width = size
    # pixel centres at whole numbers; -1 and 1 are the image's edges
    grid = (points.to(m) + 0.5) * m.new_tensor([2 / width, 2 / height]) - 1
    return F.grid_sample(m[None], grid[None, None], padding_mode='border', align_corners=False)[0, :, 0].t()


def _cells(points: Tensor, cells: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Numbers (n,) of the cells of a map (h, w) that points (n, 2) of an image (H, W) lie in."""
    rows, columns = cells
    x = ((points[:, 0] + 0.5) * columns / size[1]).long().clamp(0, columns - 1)
    y = ((points[:, 1] + 0.5) * rows / size[0]).long().clamp(0, rows - 1)
    return y * columns + x
