"""LabelPropagator: the first frame's objects followed through a video by features (DAVIS)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiffrep.datasets.images import read_image
from mmdiffrep.matching import Propagation
from mmdiffrep.matching.propagation import follow
from mmdiffrep.registry import MODELS

from .looking import FeatureModel, as_rgb


@MODELS.register_module()
class LabelPropagator(FeatureModel):
    """Objects of a first frame in all frames: DIFT's protocol on DAVIS (its section 5.3).

    Labels are carried at the features' own resolution (:class:`mmdiffrep.matching.Propagation`), resized bilinearly to the frame, each
    object's stretched to 0 … 1, and the largest is taken.

    Args:
        frames, radius, topk, temperature: :class:`Propagation`'s.
        backbone, second, size, ...: :class:`FeatureModel`'s. The metric is the cosine.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        frames: int = 28,
        radius: int = 15,
        topk: int = 15,
        temperature: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, **kwargs)
        self.settings = dict(frames=frames, radius=radius, topk=topk, temperature=temperature)
        Propagation(**self.settings)  # what does not fit is reported when the config is read

    def forward(self, inputs: Mapping[str, Any], data_samples: Any = None, mode: str = 'predict') -> Any:
        """A batch of videos -> their samples with ``pred_masks``: for each frame (H, W) uint8, object numbers."""
        if mode != 'predict':
            raise ValueError(f"mode={mode!r}: nothing is trained here; allowed: 'predict'")
        for first, sample in zip(inputs['first_mask'], data_samples):
            frames = (as_rgb(read_image(path)[..., ::-1]) for path in sample.frames)
            sample.set_metainfo(dict(pred_masks=list(self.propagate(frames, np.asarray(first)))))
        return data_samples

    @torch.no_grad()
    def propagate(self, frames: Iterable[Tensor], first: np.ndarray) -> Iterator[np.ndarray]:
        """RGB frames (3, H, W), 0 … 255, and the first one's objects (H, W), 0 … K -> each frame's objects (H, W) uint8.

        Raises:
            ValueError: a mask of another size than the first frame's, or that shows no object.
        """
        return follow(self.features, frames, first, Propagation(**self.settings))
