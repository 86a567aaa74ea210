"""UncertaintyVisualizer: what mmseg draws, with the uncertainty of the prediction beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.dist import master_only
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

from mmdiffrep.registry import VISUALIZERS

from .canvas import write_picture
from .uncertainty import draw_uncertainty


@VISUALIZERS.register_module()
class UncertaintyVisualizer(SegLocalVisualizer):
    """mmseg's ``SegLocalVisualizer`` for predictions that say how uncertain they are (``mmdiffrep.EnsembleSegmentor``).

    Where a data sample has ``uncertainty`` (1, H, W), one sheet shows image, labels, prediction and uncertainty with a legend of the classes
    and a scale; any other sample is drawn as mmseg does. ``mmseg.SegVisualizationHook(draw=True)`` calls it.

    Args:
        top: uncertainty in nats that is shown brightest, the same in each picture; None: each picture's largest.
        name, args, kwargs: ``SegLocalVisualizer``'s.
    """

    def __init__(
        self, name: str = 'visualizer', *args: Any, top: float | None = None, **kwargs: Any
    ) -> None:
        if top is not None and not top > 0:
            raise ValueError(f'top={top} does not fit; allowed: above 0, in nats')
        super().__init__(name, *args, **kwargs)
        self.top = top

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: SegDataSample | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
        **kwargs: Any,
    ) -> None:
        """As ``SegLocalVisualizer.add_datasample``; ``image`` is RGB (H, W, 3) uint8 of the size of the prediction."""
        if not draw_pred or data_sample is None or 'uncertainty' not in data_sample:
            super().add_datasample(
                name,
                image,
                data_sample,
                draw_gt,
                draw_pred,
                show,
                wait_time,
                out_file,
                step,
                **kwargs,
            )
            return
        truth = data_sample.gt_sem_seg if draw_gt and 'gt_sem_seg' in data_sample else None
        sheet = draw_uncertainty(
            image,
            _array(data_sample.pred_sem_seg),
            _array(data_sample.uncertainty),
            self.dataset_meta['classes'],
            self.dataset_meta['palette'],
            truth=None if truth is None else _array(truth),
            top=self.top,
            image_uncertainty=data_sample.get('image_uncertainty'),
        )
        if show:
            self.show(sheet, win_name=name, wait_time=wait_time)
        if out_file is not None:
            write_picture(out_file, sheet)
        else:
            self.add_image(name, sheet, step)


def _array(field: Any) -> np.ndarray:
    """PixelData (1, H, W) or (H, W) as (H, W)."""
    data = field.data
    data = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else np.asarray(data)
    return data.reshape(data.shape[-2:])
