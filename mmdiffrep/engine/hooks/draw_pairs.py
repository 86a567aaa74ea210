"""DrawPairsHook: each tested pair as a picture, with what was found and where it should be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook

from mmdiffrep.datasets.images import read_image
from mmdiffrep.registry import HOOKS
from mmdiffrep.visualization import write_picture
from mmdiffrep.visualization.matches import draw_matches


@HOOKS.register_module()
class DrawPairsHook(Hook):
    """Green lines to points that are found within α of the target's box (of its image, where it has none), red ones to others; crosses
    where they are.

    Args:
        folder: where pictures go, ``NUMBER_CATEGORY.png``.
        alpha: of PCK.
        interval: every so many pairs.
    """

    def __init__(self, folder: str | os.PathLike[str], alpha: float = 0.1, interval: int = 1) -> None:
        if alpha <= 0 or interval < 1:
            raise ValueError(f'alpha={alpha}, interval={interval} do not fit; allowed: alpha above 0, interval from 1')
        self.folder, self.alpha, self.interval = Path(folder), alpha, interval

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        for sample in outputs or []:
            if 'pred_points' not in sample:
                raise ValueError(f'DrawPairsHook draws what PointMatcher says, and a sample has {sorted(sample.keys())}: leave the hook out')
            if sample.pair_id % self.interval:
                continue
            height, width = sample.target_shape
            x1, y1, x2, y2 = sample.metainfo.get('target_box') or (0, 0, width, height)
            distance = (sample.pred_points - sample.target_points).norm(dim=1)
            images = [np.ascontiguousarray(read_image(path)[..., ::-1]) for path in (sample.source_path, sample.target_path)]
            picture = draw_matches(
                *images,
                sample.source_points.tolist(),
                sample.pred_points.tolist(),
                sample.target_points.tolist(),
                right=(distance <= self.alpha * max(x2 - x1, y2 - y1)).tolist(),
            )
            name = f'{sample.pair_id:05d}' + (f'_{sample.category}' if sample.metainfo.get('category') else '')
            write_picture(self.folder / f'{name}.png', picture)
