"""Taps: places in a network where an activation is read, or to which one is added.

A tap is written ``'<module path>'`` or ``'<module path>:<side>'`` with side ``out`` (default) or ``in``; at an attention also
``probs``, its probabilities averaged over heads, or ``head_probs``, those of every head. The path is diffusers' own, so any module
can be tapped. Tokens of the image are given as maps.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from torch import nn

from .attention import check_attention
from .tokens import sees_text

SIDES = ('out', 'in', 'probs', 'head_probs')
PROBS = ('probs', 'head_probs')
VARYING = -1  # channels that depend on the size of the image


@dataclass(frozen=True, order=True)
class Tap:
    """A module path and the side of the module on which the activation is read."""

    path: str
    side: str = 'out'

    def __str__(self) -> str:
        return self.path if self.side == 'out' else f'{self.path}:{self.side}'

    @classmethod
    def parse(cls, text: str | Tap) -> Tap:
        """Read ``'up_blocks.1'``, ``'up_blocks.1.resnets.2:in'`` …

        Raises:
            ValueError: the text is empty or names an unknown side.
        """
        if isinstance(text, Tap):
            return text
        path, _, side = str(text).partition(':')
        side = side or 'out'
        if not path or side not in SIDES:
            raise ValueError(
                f"tap {text!r} cannot be read: write '<module path>' or '<module path>:<side>' with side "
                f"one of {SIDES}, for example 'up_blocks.1' or 'up_blocks.1.resnets.2:in'"
            )
        return cls(path, side)


@dataclass(frozen=True)
class TapInfo:
    """What a tap gives, found by running the network once on fake tensors."""

    tap: str
    channels: int
    stride: int  # image pixels per feature pixel
    order: int  # position in the order of execution


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The module at ``path``; an unknown path lists the nearest valid ones."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in root.named_modules() if name]
        near = difflib.get_close_matches(path, names, n=5, cutoff=0.4)
        raise ValueError(
            f'tap {path!r}: the network has no such module. Nearest: {near or names[:5]}. '
            'tools/list_taps.py prints all of them'
        ) from None


def check_tap(root: nn.Module, tap: Tap) -> None:
    """ValueError for a tap that the network does not have, or that reads what has no place in the image."""
    module = find_module(root, tap.path)
    if tap.side in PROBS:
        check_attention(tap.path, module)
    elif sees_text(root, tap.path):
        raise ValueError(
            f'tap {str(tap)!r} reads tokens of the text, which have no place in the image. Tap the queries (to_q) or the '
            "attention's ':probs', which is a map for each token"
        )
