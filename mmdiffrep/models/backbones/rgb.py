"""RgbInput: what a backbone does to the images that a data preprocessor left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .checks import check_range


class RgbInput(nn.Module):
    """Undoes the data preprocessor's normalisation; a first batch that is implausible is reported."""

    image_mean: Tensor
    image_std: Tensor

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float], bgr: bool) -> None:
        """What the preprocessor subtracted and divided by, in its channel order, and whether that is BGR."""
        self.register_buffer('image_mean', torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer('image_std', torch.tensor(std).view(-1, 1, 1), False)
        self.bgr = bgr
        self._range_checked = False

    def to_rgb(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the preprocessor left them -> RGB in [-1, 1]."""
        rgb = (image.float() * self.image_std + self.image_mean) / 127.5 - 1
        rgb = rgb.flip(1) if self.bgr else rgb
        if not (self._range_checked or rgb.is_meta):
            self._range_checked = True
            mean, std = (x.flatten().tolist() for x in (self.image_mean, self.image_std))
            check_range(rgb, mean, std, type(self).__name__)
        return rgb
