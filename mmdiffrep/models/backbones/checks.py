"""What users get wrong about the input and the learning rate, said clearly and once."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook


def check_image(image: Tensor, channels: int) -> None:
    if image.dim() == 4 and image.shape[1] == channels and min(image.shape) > 0:
        return
    cure = (
        'Drop the alpha channel when loading (mmcv: LoadImageFromFile(color_type="color"))'
        if image.dim() == 4 and image.shape[1] == 4
        else f'This network takes images of {channels} channels'
    )
    raise ValueError(
        f'images of shape {tuple(image.shape)} were given; allowed: (B, {channels}, H, W). {cure}'
    )


def check_range(
    rgb: Tensor, mean: Sequence[float], std: Sequence[float], backbone: str = 'DiffusionBackbone'
) -> None:
    """Warn if images, mapped to [-1, 1] by the configured mean and std, are not plausibly there."""
    low, high = (((value + 1) * 127.5).item() for value in rgb.detach().aminmax())
    told = f'image_mean={[round(x, 3) for x in mean]}, image_std={[round(x, 3) for x in std]}'
    if not (low == low and high == high):
        problem = 'hold NaN'
    elif low < -40 or high > 295:
        problem = f'reach from {low:.0f} to {high:.0f} where 0 to 255 is expected'
    elif rgb.numel() > 3000 and not _picture_like(rgb.detach(), high - low):
        problem = f'reach only from {low:.2f} to {high:.2f} where 0 to 255 is expected'
    else:
        return
    warnings.warn(
        f'{backbone}: the first batch\'s images, with its {told} undone, {problem}. A pre-trained network fed with '
        "another range gives wrong features silently. Set the backbone's image_mean and image_std to the data preprocessor's "
        'mean and std (images that come in [0, 255] unnormalised: mean 0, std 1; in [0, 1]: mean 0, std 255; '
        'in [-1, 1]: 127.5 and 127.5)',
        stacklevel=3,
    )


def _picture_like(rgb: Tensor, span: float) -> bool:
    """Whether a first batch spans as much as pictures do, or holds whole numbers as 8-bit pictures do.

    Images in [0, 1], normalised as if they were in [0, 255], end up in a plausible but narrow range of fractions.
    """
    if span > 180 or bool((rgb == rgb[:1, :, :1, :1]).all()):  # one colour tells nothing
        return True
    values = (rgb + 1) * 127.5
    whole = ((values - values.round()).abs() < 0.05).float().mean().item()
    return span >= 4 and whole > 0.6


_finished: list[Any] = []  # handles of watches that have seen their optimizer


def watch_learning_rate(
    parameters: Sequence[nn.Parameter], backbone: str = 'DiffusionBackbone'
) -> None:
    """At the next optimizer step, warn if ``parameters`` (the adapter's) learn much more slowly than the rest.

    Stock configs often give ``backbone`` a tenth of the rate; the adapter inside it is trained from scratch and needs all of it.
    """
    # weakly: a model that is gone must not be kept, nor its ids be taken for those of another's parameters
    watched = [weakref.ref(p) for p in parameters if p.requires_grad]
    while _finished:
        _finished.pop().remove()
    if not watched:
        return

    def look(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if handle in _finished:
            return
        ours = {id(p) for ref in watched if (p := ref()) is not None}
        if not ours:
            _finished.append(handle)
            return
        groups = optimizer.param_groups
        inside = [g['lr'] for g in groups if any(id(p) in ours for p in g['params'])]
        if not inside:
            return  # another model's optimizer
        _finished.append(handle)  # torch walks through the hooks now: none may be taken away
        outside = [g['lr'] for g in groups if any(id(p) not in ours for p in g['params'])]
        if outside and min(inside) < 0.5 * max(outside):
            factor = min(inside) / max(outside)
            warnings.warn(
                f'the adapter inside {backbone} learns at {min(inside):.3g}, {factor:.2g} times the rate of the head '
                f"({max(outside):.3g}): the schedule's factor for 'backbone' was meant for pre-trained weights, the adapter has "
                "none. Set optim_wrapper.paramwise_cfg.custom_keys['backbone.adapter'] = dict(lr_mult=1.0)",
                stacklevel=2,
            )

    handle = register_optimizer_step_pre_hook(look)
