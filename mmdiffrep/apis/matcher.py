"""Matcher: points of one photograph found in another, by the features of a config's network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor

from mmdiffrep.datasets.images import read_image
from mmdiffrep.matching import Matches, Propagation, UpsampledMap
from mmdiffrep.matching.homography import find_homography
from mmdiffrep.matching.keypoints import MatchedKeypoints, detect, match_keypoints
from mmdiffrep.matching.points import check_points, dense_flow, match_maps
from mmdiffrep.matching.propagation import follow
from mmdiffrep.models.correspondence.looking import FeatureModel, as_rgb
from mmdiffrep.registry import MODELS

from .building import chosen_device
from .trained import load_trained, read_config

CONFIG = 'dift_natural-unet_pairs-128x128'  # on the network that ships
Image = str | Path | np.ndarray | Tensor


class Matcher:
    """Correspondence between images by the features of any backbone (DIFT: Tang et al., NeurIPS 2023).

    Images are files, RGB arrays (H, W, 3) uint8, or RGB tensors (3, H, W) in 0 … 255. Points are x and y in pixels of the image as it is
    given, the first pixel's centre at 0. An image that is asked about again and again is looked at once (``kept`` of them).

    Args:
        config: a config file, the name of one that comes with the package (``configs/dift``), or an mmengine ``Config``, whose model is
            ``mmdiffrep.PointMatcher``, ``HomographyMatcher`` or ``LabelPropagator``.
        weights: of a trained neck; None: nothing is trained.
        device: default: the accelerator where there is one.
        kept: maps of so many images are kept.

    Raises:
        FileNotFoundError: no such config, weights or image.
        ValueError: a model that does not match images, or weights that are not of it; no readable image.
    """

    def __init__(
        self,
        config: str | Path | Config,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
        kept: int = 8,
    ) -> None:
        cfg = read_config(config)
        self.device = chosen_device(device)
        model = MODELS.build(cfg.model)
        if not isinstance(model, FeatureModel):
            raise ValueError(
                f'the config builds a {type(model).__name__}; needed: PointMatcher, HomographyMatcher or LabelPropagator (configs/dift)'
            )
        if weights is None and model.neck is not None:
            raise ValueError(f'the config has a neck ({type(model.neck).__name__}) that is trained: give the weights that training wrote')
        if weights is not None:
            load_trained(model, weights)
        self.model = model.to(self.device).eval()
        self.kept = kept
        self._maps: dict[tuple, Tensor] = {}

    def features(self, image: Image, category: str | None = None) -> Tensor:
        """The image's map (C, h, w)."""
        return self._look([self._rgb(image)], category)[0]

    def match(self, source: Image, target: Image, points: Any, category: str | None = None) -> Matches:
        """Where points (n, 2) of the source lie in the target, and how alike they are; in main memory.

        Raises:
            ValueError: no points, or points outside the source.
        """
        images = [self._rgb(source), self._rgb(target)]
        sizes = [_size(image) for image in images]
        points = check_points(points, sizes[0])
        options = {name: getattr(self.model, name) for name in ('window', 'temperature') if hasattr(self.model, name)}
        if getattr(self.model, 'flip', False):
            images.append(images[0].flip(-1))
        found = match_maps(self._look(images, category), points, sizes, metric=self.model.metric, **options)
        return replace(found, points=found.points.cpu(), scores=found.scores.cpu())

    def scores(self, source: Image, target: Image, point: Sequence[float], category: str | None = None) -> Tensor:
        """How alike one point of the source and each pixel of the target are: a heat map (H, W)."""
        images = [self._rgb(source), self._rgb(target)]
        points = check_points([list(point)], _size(images[0]))
        a, b = self._look(images, category)
        vector = UpsampledMap(a, _size(images[0])).at(points.to(a.device))
        return UpsampledMap(b, _size(images[1])).scores(vector, self.model.metric)[0].float().cpu()

    def mutual(
        self,
        source: Image,
        target: Image,
        source_points: Any = None,
        target_points: Any = None,
        detector: str = 'sift',
        count: int = 1000,
    ) -> MatchedKeypoints:
        """Keypoints of both images that are each other's nearest; those that are not given are detected."""
        images = [self._rgb(source), self._rgb(target)]
        places = [
            detect(_array(image), detector, count) if points is None else check_points(points, _size(image))
            for image, points in zip(images, (source_points, target_points))
        ]
        if not len(places[0]) or not len(places[1]):
            raise ValueError(f'the detector {detector!r} found {len(places[0])} and {len(places[1])} keypoints: take another, e.g. \'grid\'')
        return match_keypoints(self._look(images), places, [_size(image) for image in images], self.model.metric)

    def homography(
        self, source: Image, target: Image, method: str = 'lmeds', threshold: float = 3.0, **kwargs: Any
    ) -> tuple[np.ndarray, MatchedKeypoints, np.ndarray]:
        """The homography (3, 3) from source to target, the matched keypoints, and which of them agree (n,).

        Args:
            method, threshold: :func:`mmdiffrep.matching.homography.find_homography`'s.
            kwargs: :meth:`mutual`'s.

        Raises:
            ValueError: too few matches, or matches on a line.
        """
        found = self.mutual(source, target, **kwargs)
        matrix, agree = find_homography(found.source, found.target, method, threshold)
        return matrix, found, agree

    def flow(self, source: Image, target: Image, category: str | None = None) -> tuple[Tensor, Tensor]:
        """By how many pixels of the target each pixel of the source moves to its nearest neighbour there.

        The place of a pixel is scaled to the target's size first, so that the flow of an image to itself enlarged is 0.

        Returns:
            flow (2, H, W), x and y, and score (H, W), in the source's size: each pixel moves as its cell of the map does, as neighbouring cells
            may move to different places, between which there is nothing.
        """
        images = [self._rgb(source), self._rgb(target)]
        flow, scores = dense_flow(*self._look(images, category), metric=self.model.metric)
        height, width = _size(images[1])
        flow = flow * flow.new_tensor([width, height])[:, None, None]
        both = torch.cat([flow, scores[None].to(flow)])[None]
        resized = F.interpolate(both.float(), _size(images[0]), mode='nearest-exact')[0].cpu()
        return resized[:2], resized[2]

    def propagate(self, frames: Iterable[Image], first: np.ndarray, **settings: Any) -> Iterator[np.ndarray]:
        """The first frame's objects (H, W), numbered from 1, in every frame: (H, W) uint8 each.

        Args:
            settings: :class:`mmdiffrep.matching.Propagation`'s; default: the config's, or DIFT's.
        """
        chosen = {**getattr(self.model, 'settings', {}), **settings}
        state = Propagation(**chosen)
        with torch.no_grad():
            yield from follow(self.model.features, (self._rgb(frame) for frame in frames), np.asarray(first), state)

    @torch.no_grad()
    def _look(self, images: Sequence[Tensor], category: str | None = None) -> list[Tensor]:
        if self.model.components is not None:  # shared by the images at hand: none of them can be kept
            return self.model.of_images(images, category)
        found = []
        for image in images:
            key = (hash(image.cpu().numpy().tobytes()), tuple(image.shape), category)
            m = self._maps.pop(key, None)
            if m is None:
                m = self.model.features(image, category)
            self._maps[key] = m  # the latest last
            found.append(m)
        while len(self._maps) > self.kept:
            self._maps.pop(next(iter(self._maps)))
        return found

    def _rgb(self, image: Image) -> Tensor:
        if isinstance(image, Tensor):
            if image.dim() != 3 or image.shape[0] != 3:
                raise ValueError(f'a tensor of shape {tuple(image.shape)} was given as an image; allowed: RGB (3, H, W), 0 … 255')
            return image
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise ValueError(f'an array {image.dtype} {image.shape} was given as an image; allowed: RGB uint8 (H, W, 3)')
            array = image
        else:
            array = read_image(image)[..., ::-1]
        return as_rgb(array)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _array(image: Tensor) -> np.ndarray:
    return image.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy()
