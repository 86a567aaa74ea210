"""Attention probabilities at a tap, from the queries and keys that the untouched network computes.

The network's own attention stays what it is (scaled-dot-product kernels, which keep no probabilities); only where ``:probs`` is
tapped are they computed beside it, in fp32, in tiles of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TILE_ELEMENTS = 1 << 24  # of one tile (B, heads, queries, keys): 64 MiB in fp32


def attention_probs(
    query: Tensor,
    key: Tensor,
    scale: float,
    average: bool = True,
    tile_elements: int = TILE_ELEMENTS,
) -> Tensor:
    """softmax(scale · q kᵀ), in fp32.

    Args:
        query, key: (B, heads, N, d) and (B, heads, M, d).
        average: over the heads.
        tile_elements: how many numbers of the full (B, heads, N, M) exist at once.

    Returns:
        (B, N, M) averaged over heads, or (B, N, heads · M), head-major.
    """
    batch, heads, queries, _ = query.shape
    step = max(1, tile_elements // (batch * heads * key.shape[2]))
    query, key = query.float(), key.float().transpose(2, 3)
    tiles = []
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, queries, step):
            scores = (query[:, :, start : start + step] * scale) @ key
            probs = scores.softmax(-1)
            tiles.append(probs.mean(1) if average else probs.transpose(1, 2).flatten(2))
    return tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=1)


def check_attention(path: str, module: nn.Module) -> None:
    """ValueError where a module has no queries and keys of its own."""
    if getattr(module, 'fused_projections', False):
        raise ValueError(
            f"tap {path + ':probs'!r}: this attention's projections were fused, so its queries and keys are not to be seen. "
            'Leave fuse_qkv out'
        )
    needed = ('to_q', 'to_k', 'heads', 'scale')
    if not all(getattr(module, name, None) is not None for name in needed):
        raise ValueError(
            f'tap {path + ":probs"!r}: a {type(module).__name__} is no attention. Name the attention itself, for example '
            "'….transformer_blocks.0.attn2:probs' (tools/list_taps.py CONFIG --all prints them)"
        )
    if getattr(module, 'added_kv_proj_dim', None) is not None:
        raise ValueError(
            f'tap {path + ":probs"!r}: this attention joins text and image in its keys, for which probabilities are not offered'
        )


def hook_probs(
    module: nn.Module, average: bool, read: Callable[[Callable[[], Tensor]], None]
) -> list[torch.utils.hooks.RemovableHandle]:
    """Once the attention has run, call ``read`` with a function that computes the probabilities (B, N, M or heads · M)."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    def split(x: Tensor) -> Tensor:  # (B, N, heads d) -> (B, heads, N, d); norms already see heads
        return x if x.dim() == 4 else x.unflatten(2, (module.heads, -1)).transpose(1, 2)

    def before(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get('attention_mask', args[2] if len(args) > 2 else None)
        if mask is not None:
            raise ValueError("':probs' is not offered where the attention is masked")

    def after(_module: nn.Module, _args: Any, _output: Any) -> None:
        query, key = split(seen.pop('q')), split(seen.pop('k'))
        read(lambda: attention_probs(query, key, module.scale, average))

    def last(name: str) -> nn.Module:
        norm = getattr(module, f'norm_{name}', None)
        return norm if norm is not None else getattr(module, f'to_{name}')

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        last('q').register_forward_hook(keep('q')),
        last('k').register_forward_hook(keep('k')),
        module.register_forward_hook(after),
    ]
