"""Token sequences as maps: which activations are tokens of the image, and their height and width.

A transformer's activations are (B, N, C). Their place in the image comes from the nearest enclosing module that was given a map
(B, C, h, w), divided by its patch size; never from the square root of N.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int]

# parts of a cross-attention that see the text and not the image
_TEXT_PARTS = frozenset(['to_k', 'to_v', 'norm_k', 'norm_cross', 'add_k_proj', 'add_v_proj'])


def input_grid(module: nn.Module, activation: Any) -> Grid | None:
    """The grid of tokens that a module makes of its input: that of a map (B, C, h, w), in patches where it cuts some."""
    if not isinstance(activation, Tensor) or activation.dim() != 4:
        return None
    patch = (
        vars(module).get('patch_size') or 1
    )  # getattr would reach diffusers' configs, which is deprecated
    height, width = activation.shape[-2:]
    return height // patch, width // patch


def enclosing(root: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The module at ``path`` and those around it, from the innermost to ``root`` (whose path is '')."""
    parts = path.split('.') if path else []
    chain = [('', root)]
    for end in range(1, len(parts) + 1):
        chain.append(('.'.join(parts[:end]), chain[-1][1].get_submodule(parts[end - 1])))
    return chain[::-1]


def sees_text(root: nn.Module, path: str) -> bool:
    """Whether a module's activations are tokens of the text: keys and values of a cross-attention."""
    parts = path.split('.')
    modules = dict(enclosing(root, path))
    return any(
        part in _TEXT_PARTS and getattr(modules['.'.join(parts[:k])], 'is_cross_attention', False)
        for k, part in enumerate(parts)
    )


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, h w, C) -> (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def to_tokens(feature: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h w, C)."""
    return feature.flatten(2).transpose(1, 2)


def channels_first(module: nn.Module) -> bool:
    """Whether a module's tokens are (B, C, N): a GroupNorm, which an attention turns around and back."""
    return isinstance(module, nn.GroupNorm)


def map_shape(shape: tuple[int, ...], grid: Grid | None) -> tuple[int, ...]:
    """Shape of an activation as a map; tokens that fit no grid keep theirs."""
    if len(shape) == 3 and grid is not None and grid[0] * grid[1] == shape[1]:
        return shape[0], shape[2], *grid
    return shape
