"""What an ensemble of classifiers says together: its vote and its uncertainty (Baranchuk et al., ICLR 2022)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def vote_shares(logits: Tensor) -> Tensor:
    """The share of members that choose each class: (M, n, C) -> (n, C).

    Its argmax is the majority vote; of several classes with the same share it is the lowest, as ``torch.mode`` has it.
    """
    chosen = logits.argmax(-1)
    return F.one_hot(chosen, logits.shape[-1]).sum(0).float() / len(logits)


def jensen_shannon(logits: Tensor) -> Tensor:
    """How far members disagree, in nats: H(mean p) − mean H(p_m), (M, n, C) -> (n,); 0 if all give the same probabilities."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    own = -(p * log_p).sum(-1).mean(0)
    together = -torch.special.xlogy(mean := p.mean(0), mean).sum(-1)
    return (together - own).clamp(min=0)


def image_uncertainty(pixels: Tensor, share: float = 0.1) -> float:
    """The mean of an image's most uncertain 10 % of pixels (rounded down, at least one)."""
    flat = pixels.flatten()
    return flat.topk(max(1, int(flat.numel() * share))).values.mean().item()
