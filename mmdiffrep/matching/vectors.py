"""Nearest neighbours among vectors, in chunks that bound the memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**24  # comparisons at once: 64 MiB


def normalised(vectors: Tensor, metric: str) -> Tensor:
    """Vectors whose product ranks as the metric does: unit length for the cosine."""
    return F.normalize(vectors.float(), dim=1) if metric == 'cosine' else vectors.float()


def nearest(queries: Tensor, keys: Tensor, metric: str = 'cosine') -> tuple[Tensor, Tensor]:
    """Of each query (n, C) the most alike key (m, C): (number, score), both (n,); of equal ones the first.

    Scores are cosines, or minus Euclidean distances (``'l2'``).

    Raises:
        ValueError: no keys, or another metric.
    """
    if metric not in ('cosine', 'l2') or not len(keys):
        raise ValueError(f"metric={metric!r} with {len(keys)} keys does not fit; allowed: 'cosine', 'l2', one key or more")
    a, b = normalised(queries, metric), normalised(keys, metric)
    lengths = b.square().sum(1)
    found, scores = [], []
    for rows in a.split(max(1, CHUNK // len(b))):
        products = rows @ b.t()
        if metric == 'l2':
            products = -(rows.square().sum(1, keepdim=True) - 2 * products + lengths).clamp(min=0).sqrt()
        best = products.max(1)
        found.append(best.indices)
        scores.append(best.values)
    if not found:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0)
    return torch.cat(found), torch.cat(scores)


def mutual_nearest(first: Tensor, second: Tensor, metric: str = 'cosine') -> tuple[Tensor, Tensor]:
    """Pairs (n, 2) of rows of two sets (N, C), (M, C) that are each other's nearest, ascending in the first; their scores (n,)."""
    forth, scores = nearest(first, second, metric)
    back, _ = nearest(second, first, metric)
    own = torch.arange(len(first), device=forth.device)
    kept = back[forth] == own
    return torch.stack([own[kept], forth[kept]], 1), scores[kept]
