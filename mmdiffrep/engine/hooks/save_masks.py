"""SaveMasksHook: objects that were followed through videos, as DAVIS' own evaluation takes them, and a picture of each video."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from PIL import Image

from mmdiffrep.datasets.images import read_image
from mmdiffrep.registry import HOOKS
from mmdiffrep.utils.files import write
from mmdiffrep.visualization import contact_sheet, overlay, write_picture
from mmdiffrep.visualization.matches import point_colours


@HOOKS.register_module()
class SaveMasksHook(Hook):
    """``FOLDER/VIDEO/FRAME.png``, indexed PNGs of object numbers, and ``FOLDER/VIDEO.png``, some frames with their objects.

    Args:
        folder: where they go.
        frames: so many frames in a video's picture.
    """

    def __init__(self, folder: str | os.PathLike[str], frames: int = 5) -> None:
        if frames < 1:
            raise ValueError(f'frames={frames} does not fit; allowed: 1 and more')
        self.folder, self.frames = Path(folder), frames

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        for sample in outputs or []:
            if 'pred_masks' not in sample:
                raise ValueError(f'SaveMasksHook writes what LabelPropagator says, and a sample has {sorted(sample.keys())}: leave the hook out')
            masks = sample.pred_masks
            colours = point_colours(max(int(m.max()) for m in masks))
            palette = [0, 0, 0, *(c for colour in colours for c in colour)]
            for path, mask in zip(sample.frames, masks):
                picture = Image.fromarray(mask).convert('P')
                picture.putpalette(palette)
                data = io.BytesIO()
                picture.save(data, format='PNG')
                write(self.folder / sample.video / f'{Path(path).stem}.png', data.getvalue())
            chosen = np.unique(np.linspace(0, len(masks) - 1, self.frames).round().astype(int))
            shown = []
            for k in chosen:
                labels = masks[k].astype(np.int64) - 1  # nothing is -1: it has no colour
                shown.append(overlay(np.ascontiguousarray(read_image(sample.frames[k])[..., ::-1]), labels, colours, side=320))
            write_picture(self.folder / f'{sample.video}.png', contact_sheet([shown], [f'frame {k}' for k in chosen], text_size=9))
