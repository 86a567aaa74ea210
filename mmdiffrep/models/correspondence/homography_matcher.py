"""HomographyMatcher: keypoints of two images matched by their features, and the homography that most of them agree on (HPatches)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiffrep.matching.homography import METHODS, find_homography
from mmdiffrep.matching.keypoints import DETECTORS, MatchedKeypoints, detect, match_keypoints
from mmdiffrep.matching.points import check_points
from mmdiffrep.registry import MODELS

from .looking import FeatureModel


@MODELS.register_module()
class HomographyMatcher(FeatureModel):
    """Mutual nearest neighbours among keypoints, and their homography: DIFT's protocol on HPatches (its section 5.2).

    Keypoints that come with a pair (``source_points``, ``target_points``; DIFT takes SuperPoint's) are used; else they are detected.

    Args:
        detector, count: ``'sift'``, ``'orb'``, ``'corners'`` or ``'grid'``, and how many of an image.
        method, threshold: ``'lmeds'``, ``'ransac'`` or ``'usac'``; pixels.
        backbone, second, size, metric, ...: :class:`FeatureModel`'s.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        detector: str = 'sift',
        count: int = 1000,
        method: str = 'lmeds',
        threshold: float = 3.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        if method not in METHODS or detector not in DETECTORS:
            raise ValueError(
                f'method={method!r}, detector={detector!r} do not fit; allowed: {list(METHODS)}, {list(DETECTORS)}'
            )
        self.detector, self.count, self.method, self.threshold = detector, count, method, threshold

    def forward(self, inputs: Mapping[str, Any], data_samples: Any = None, mode: str = 'predict') -> Any:
        """A batch of pairs -> their samples with ``pred_homography`` (3, 3), None where none was found, and the matches."""
        if mode != 'predict':
            raise ValueError(f"mode={mode!r}: nothing is trained here; allowed: 'predict'")
        for source, target, sample in zip(inputs['source'], inputs['target'], data_samples):
            given = [sample.get('source_points'), sample.get('target_points')]
            found = self.match(source.flip(0), target.flip(0), *given)
            homography = self.homography(found)
            sample.set_metainfo(dict(pred_homography=None if homography is None else homography[0].tolist()))
            sample.pred_source, sample.pred_target, sample.pred_scores = found.source, found.target, found.scores
        return data_samples

    @torch.no_grad()
    def match(
        self, source: Tensor, target: Tensor, source_points: Any = None, target_points: Any = None
    ) -> MatchedKeypoints:
        """RGB images (3, H, W), 0 … 255, and keypoints (n, 2), (m, 2) of each -> those that are each other's nearest.

        Raises:
            ValueError: keypoints outside their image.
        """
        places, images = [], (source, target)
        for image, points in zip(images, (source_points, target_points)):
            if points is None:
                points = detect(image.byte().permute(1, 2, 0).contiguous().cpu().numpy(), self.detector, self.count)
            elif len(points):
                points = check_points(points, (image.shape[-2], image.shape[-1]))
            places.append(points)
        if not len(places[0]) or not len(places[1]):
            return MatchedKeypoints(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        return match_keypoints(self.of_images(images), places, sizes, self.metric)

    def homography(self, found: MatchedKeypoints) -> tuple[np.ndarray, np.ndarray] | None:
        """The homography (3, 3) from source to target and who agrees (n,); None where the matches fix none."""
        try:
            return find_homography(found.source, found.target, self.method, self.threshold)
        except ValueError:  # too few, or on a line
            return None
