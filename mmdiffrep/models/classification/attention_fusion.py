"""AttentionFusion: DifFormer's head, and on one map GDC's attention head.

Mukhopadhyay et al., "Do text-free diffusion models learn discriminative visual representations?", ECCV 2024, arXiv 2311.17921.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdiffrep.registry import MODELS

from .heads import channels_of


@MODELS.register_module()
class AttentionFusion(BaseModule):
    """Maps of several taps at several timesteps -> tokens -> a transformer, once a timestep -> one linear layer.

    Per tap, the same for all timesteps: adaptive average pool to at most pool×pool, LayerNorm over (C, h, w), 1×1 convolution to
    ``dim``. A class token, zero at first, and all tokens of a timestep pass ``depth`` pre-norm blocks without positional
    embedding; the class tokens of all timesteps are concatenated and classified.

    Args:
        num_classes: K.
        in_channels: of each map, t-major: every tap at the first timestep, then at the second (filled in by
            ``DiffusionClassifier``, as are the next two).
        in_strides: of each map; with ``image_size`` they say the maps' sizes.
        num_timesteps: T; the maps are T times the taps.
        image_size: side or (height, width) of the images that the backbone gets.
        sizes: instead of both, each tap's (height, width), or side.
        dim, depth, heads, mlp_ratio: of the transformer; the paper's are 1024, 2, 8, 4.
        pool: cells a side at most; the paper's is 16.
        with_cp: compute the blocks' activations again in the backward pass.

    Raises:
        ValueError: sizes that do not fit, or cannot be known; maps of other numbers or channels.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: Sequence[int] | int,
        in_strides: Sequence[int] | None = None,
        num_timesteps: int = 1,
        image_size: int | Sequence[int] | None = None,
        sizes: Sequence[int | Sequence[int]] | None = None,
        dim: int = 1024,
        depth: int = 2,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        pool: int = 16,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        channels = channels_of(in_channels)
        if min(num_classes, num_timesteps, dim, depth, heads, pool, dim * mlp_ratio) < 1 or dim % heads:
            raise ValueError(
                f'num_classes={num_classes}, num_timesteps={num_timesteps}, dim={dim}, depth={depth}, heads={heads}, pool={pool}, '
                f'mlp_ratio={mlp_ratio} do not fit; allowed: whole numbers from 1, dim a multiple of heads'
            )
        count, rest = divmod(len(channels), num_timesteps)
        if rest or channels != channels[:count] * num_timesteps:
            raise ValueError(
                f'in_channels={channels} are no {num_timesteps} times the same taps: the maps of every timestep must be alike (taps of an '
                'autoencoder come once: leave them out)'
            )
        self.num_classes, self.num_timesteps, self.with_cp = num_classes, num_timesteps, with_cp
        self.in_channels = channels[:count]
        self.sizes = [
            (min(h, pool), min(w, pool))
            for h, w in _sizes(count, num_timesteps, in_strides, image_size, sizes)
        ]
        self.norms = nn.ModuleList(nn.LayerNorm([c, *size]) for c, size in zip(self.in_channels, self.sizes))
        self.projections = nn.ModuleList(nn.Conv2d(c, dim, 1) for c in self.in_channels)
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.fc = nn.Linear(num_timesteps * dim, num_classes)

    @property
    def tokens(self) -> list[int]:
        """Of each tap."""
        return [h * w for h, w in self.sizes]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_k, h_k, w_k), t-major -> logits (B, K)."""
        wanted = self.in_channels * self.num_timesteps
        found = [m.shape[1] for m in maps]
        if found != wanted:
            raise ValueError(f'maps of {found} channels were given; the head was built for {wanted}, t-major')
        taps, steps, batch = len(self.in_channels), self.num_timesteps, len(maps[0])
        # timesteps share all weights: they are more images
        x = torch.cat([self._tokens(k, torch.cat(list(maps[k::taps]))) for k in range(taps)], 1)
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x), x], 1)
        for k, block in enumerate(self.blocks):
            rows = 1 if k == len(self.blocks) - 1 else None  # of the last block only the class token is read
            if self.with_cp and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(block, x, rows, use_reentrant=False)
            else:
                x = block(x, rows)
        return self.fc(x[:, 0].view(steps, batch, -1).transpose(0, 1).flatten(1))

    def _tokens(self, k: int, m: Tensor) -> Tensor:
        pooled = self.norms[k](F.adaptive_avg_pool2d(m, self.sizes[k]))
        return self.projections[k](pooled).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(LN x), then x + MLP(LN x); no bias for queries, keys and values."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        width = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, dim))

    def forward(self, x: Tensor, rows: int | None = None) -> Tensor:
        """(B, N, dim) -> the same; with ``rows`` the first so many tokens alone, (B, rows, dim), which still see all."""
        normed = self.norm1(x)
        if rows is None:
            q, k, v = self._heads(self.qkv(normed), 3)
        else:
            x, dim = x[:, :rows], x.shape[2]
            [q] = self._heads(F.linear(normed[:, :rows], self.qkv.weight[:dim]), 1)
            k, v = self._heads(F.linear(normed, self.qkv.weight[dim:]), 2)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(B, N, parts · dim) -> (parts, B, heads, N, dim / heads)."""
        return x.unflatten(2, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


def _sizes(
    count: int,
    timesteps: int,
    strides: Sequence[int] | None,
    image_size: int | Sequence[int] | None,
    sizes: Sequence[int | Sequence[int]] | None,
) -> list[tuple[int, int]]:
    """(height, width) of each tap's map."""
    if sizes is not None:
        found = [_pair(size) for size in sizes]
    elif strides is not None and image_size is not None:
        strides = list(strides)
        if strides not in (strides[:count], strides[:count] * timesteps):
            raise ValueError(f'in_strides={strides} are no {timesteps} times those of {count} taps')
        h, w = _pair(image_size)
        found = [(-(-h // s), -(-w // s)) for s in strides[:count]]
    else:
        raise ValueError(
            "AttentionFusion normalises maps of a fixed size: give image_size (and, outside of a DiffusionClassifier, in_strides), or each tap's sizes"
        )
    if len(found) != count or min(min(pair) for pair in found) < 1:
        raise ValueError(f'sizes={found} do not fit {count} taps; allowed: one (height, width) for each')
    return found


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A side or (height, width) as the latter."""
    if isinstance(size, int):
        return size, size
    if len(size) != 2:
        raise ValueError(f'size {list(size)} does not fit; allowed: a side, or (height, width)')
    return size[0], size[1]
