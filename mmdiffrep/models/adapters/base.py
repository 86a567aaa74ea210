"""What adapters share: sizes of maps and the check of what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def map_size(image_size: tuple[int, int], stride: float) -> tuple[int, int]:
    """Size of a map that covers an image (H, W) at a stride: rounded up, at least 1×1."""
    return tuple(max(1, int(-(-side // stride))) for side in image_size)  # type: ignore[return-value]


def check_inputs(adapter: Any, features: Sequence[Tensor]) -> None:
    """The features that come must be those the adapter was built for."""
    given = [feature.shape[1] for feature in features]
    if given != adapter.in_channels:
        raise ValueError(
            f'{type(adapter).__name__} was built for taps of {adapter.in_channels} channels and got maps of {given}. '
            'As the adapter inside DiffusionBackbone it is built to fit; as a neck its in_channels and in_strides must be '
            "the backbone's out_channels and out_strides (tools/list_taps.py CONFIG prints them)"
        )
