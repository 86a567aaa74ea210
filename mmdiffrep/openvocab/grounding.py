"""Grounding: which image a caption belongs to, by its noun phrases and the image's mask embeddings.

ODISE's training from captions (Xu et al., CVPR 2023, https://arxiv.org/abs/2303.04803, section 3.4), after Gupta et al.,
ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .phrases import noun_phrases, sample_phrases

__all__ = ['grounding_loss', 'grounding_similarity', 'noun_phrases', 'sample_phrases']


def grounding_similarity(
    embeddings: Tensor, phrases: Sequence[Tensor], scale: float | Tensor
) -> Tensor:
    """g(I, C) = mean_k Σ_q softmax_q(s·cos(e_q, t_k)) · s·cos(e_q, t_k), in fp32.

    Args:
        embeddings: of each image's queries, (B_i, Q, D); they need not be normalised.
        phrases: of each caption's phrases, (k_b, D) each.
        scale: s.

    Returns:
        (B_i, B_t). A caption without phrases has 0 everywhere.

    Raises:
        ValueError: shapes that do not fit.
    """
    wrong = [tuple(p.shape) for p in phrases if p.dim() != 2 or p.shape[1] != embeddings.shape[-1]]
    if embeddings.dim() != 3 or not len(phrases) or wrong:
        raise ValueError(
            f'embeddings of shape {tuple(embeddings.shape)} and {len(phrases)} captions, with phrases of shapes {wrong}, do not fit; '
            'allowed: (B, Q, D), and (k, D) for each caption'
        )
    counts = torch.tensor([len(p) for p in phrases], device=embeddings.device)
    return _similarity(embeddings, torch.cat(list(phrases)), counts, scale)


def _similarity(
    embeddings: Tensor, phrases: Tensor, counts: Tensor, scale: float | Tensor
) -> Tensor:
    """``phrases`` (K, D) of all captions, of which caption b has ``counts[b]``."""
    # autocast would take the products in half precision, and the scale multiplies their error
    with torch.autocast(embeddings.device.type, enabled=False):
        wide = torch.promote_types(embeddings.dtype, torch.float32)
        e = F.normalize(embeddings.to(wide), dim=-1)
        t = F.normalize(phrases.to(wide), dim=-1)
        logits = scale * (e @ t.T)  # (B_i, Q, K)
        of_phrase = (logits.softmax(1) * logits).sum(1)  # (B_i, K)
        owner = torch.repeat_interleave(torch.arange(len(counts), device=e.device), counts)
        mean = F.one_hot(owner, len(counts)).to(wide) / counts.clamp(min=1)  # (K, B_t)
        return of_phrase @ mean


def grounding_loss(
    embeddings: Tensor, phrases: Sequence[Tensor], scale: float | Tensor, gather: bool = True
) -> Tensor:
    """Symmetric InfoNCE: each image finds its caption among the batch's, each caption its image.

    The batch is that of all processes: embeddings are gathered with their gradient, and every process computes the whole loss. A
    process's gradient is that of the sum over the processes, so that their mean, which DistributedDataParallel takes, is the one that a
    single process with the whole batch has.

    Args:
        embeddings, phrases, scale: see :func:`grounding_similarity`; caption b belongs to image b. Processes may have different
            numbers of images, and captions of phrases. A caption without phrases is left out; its image is not.
        gather: False: this process's batch alone.

    Returns:
        A scalar, the mean of the two directions; 0 where no caption has a phrase.

    Raises:
        ValueError: not one caption an image, or shapes that do not fit.
    """
    if len(phrases) != len(embeddings):
        raise ValueError(
            f'{len(phrases)} captions were given for {len(embeddings)} images; give one for each (no phrases: a tensor (0, D))'
        )
    together = torch.cat([p.to(embeddings) for p in phrases]) if len(phrases) else embeddings[:, 0]
    counts = torch.tensor([len(p) for p in phrases], device=embeddings.device)
    if gather and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        embeddings, together, counts = _gathered(embeddings, together, counts)
    similarity = _similarity(embeddings, together, counts, scale)
    named = counts.nonzero()[:, 0]
    if not len(named):
        return similarity.sum() * 0  # with a gradient: of zeros
    to_caption = F.cross_entropy(similarity[named][:, named], torch.arange(len(named)).to(named))
    to_image = F.cross_entropy(similarity[:, named].T, named)
    return (to_caption + to_image) / 2


def _gathered(embeddings: Tensor, phrases: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Those of all processes, in their order.

    Embeddings and phrases travel in one call: a process whose captions have no phrase takes part in its backward pass too.
    """
    world = dist.get_world_size()
    queries, width = embeddings.shape[1:]
    own = torch.tensor([len(embeddings), len(phrases)], device=embeddings.device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(sizes, own)
    images, rows = (size.tolist() for size in torch.stack(sizes).T)
    flat = torch.cat([embeddings.reshape(-1, width), phrases])
    longest = max(b * queries + k for b, k in zip(images, rows))
    parts = _Gather.apply(F.pad(flat, (0, 0, 0, longest - len(flat))))
    padded = F.pad(counts, (0, max(images) - len(counts)))
    all_counts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(all_counts, padded)
    ends = [b * queries for b in images]
    return (
        torch.cat([part[:end] for part, end in zip(parts, ends)]).unflatten(0, (-1, queries)),
        torch.cat([part[end : end + k] for part, end, k in zip(parts, ends, rows)]),
        torch.cat([found[:b] for found, b in zip(all_counts, images)]),
    )


class _Gather(torch.autograd.Function):
    """(n, D) -> (processes, n, D); backward sums what all processes' losses say."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[dist.get_rank()]
