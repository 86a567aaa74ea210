"""Two opinions on a mask's class made one: of the trained head, and of CLIP, which never saw the masks.

Xu et al., ODISE, CVPR 2023, section 3.5; Yu et al., FC-CLIP, NeurIPS 2023, section 3.3; after Gu et al., ViLD, ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# published weights of CLIP: for classes seen in training, and for the others
PRESETS: dict[str, dict[str, float]] = {
    'odise-label': dict(alpha=0.3, beta=0.7),
    'odise-caption': dict(alpha=0.35, beta=0.65),
    'fc-clip': dict(alpha=0.4, beta=0.8),
}
LIMIT = 1e4  # logits beyond it are as good as certain; it keeps sums of logarithms finite


def fuse(
    logits: Tensor,
    clip_logits: Tensor,
    seen: Tensor | Sequence[bool],
    alpha: float = 0.3,
    beta: float = 0.7,
    p_void: Tensor | None = None,
) -> Tensor:
    """Geometric mean of two classifications: log-probabilities (…, Q, K + 1), fp32, void last.

    ``l_k = (1 - w_k) log p_k + w_k log c_k``, with w = alpha for seen classes and beta for the others, p and c softmax over the K
    classes; the result is ``log [softmax(l) (1 - p_void), p_void]``. Every number is finite, and a row's exponentials add up to 1.

    Args:
        logits: (…, Q, K + 1) of the head, void last.
        clip_logits: (…, Q, K), cosines times CLIP's logit scale.
        seen: (K,), or what broadcasts to (…, Q, K): whether training knew the class.
        alpha, beta: weight of CLIP, in [0, 1]; ``PRESETS`` has the published ones. Both 0: the head alone, both 1: CLIP alone, but
            for void.
        p_void: (…, Q), probability that a mask is nothing, in [0, 1]. None: softmax of ``logits`` over K + 1, which depends on the
            number of classes (ODISE's way).

    Raises:
        ValueError: shapes do not fit, a weight or ``p_void`` lies outside of [0, 1], or no class is given.
    """
    classes = clip_logits.shape[-1]
    known = torch.as_tensor(seen, dtype=torch.bool, device=logits.device)
    _check(logits, clip_logits, known, dict(alpha=alpha, beta=beta))
    with torch.autocast(logits.device.type, enabled=False):
        head = logits.float().clamp(-LIMIT, LIMIT)
        clip = clip_logits.float().clamp(-LIMIT, LIMIT)
        weight = torch.where(known, alpha, beta).float()
        mixed = (1 - weight) * head[..., :classes].log_softmax(-1) + weight * clip.log_softmax(-1)
        something, nothing = _void(head, p_void)
        return torch.cat([mixed.log_softmax(-1) + something, nothing], -1)


def _void(head: Tensor, p_void: Tensor | None) -> tuple[Tensor, Tensor]:
    """log(1 - p_void), log(p_void), each (…, Q, 1)."""
    if p_void is None:
        both = head.log_softmax(-1)
        return both[..., :-1].logsumexp(-1, keepdim=True), both[..., -1:]
    given = p_void.to(head.device).float()
    if given.shape != head.shape[:-1] or bool(((given < 0) | (given > 1)).any()):
        raise ValueError(
            f'p_void of shape {tuple(given.shape)} does not fit logits {tuple(head.shape)}; needed: {tuple(head.shape[:-1])}, '
            'probabilities in [0, 1]'
        )
    least = torch.finfo(torch.float32).tiny
    sides = torch.stack([1 - given, given]).clamp(min=least).log()[..., None]
    return sides[0], sides[1]


def _check(logits: Tensor, clip_logits: Tensor, seen: Tensor, weights: dict[str, float]) -> None:
    classes = clip_logits.shape[-1]
    if classes < 1 or logits.shape != (*clip_logits.shape[:-1], classes + 1):
        raise ValueError(
            f'logits {tuple(logits.shape)} and clip_logits {tuple(clip_logits.shape)} do not fit; needed: (…, Q, K + 1), void last, and '
            '(…, Q, K) of the same vocabulary, with at least one class'
        )
    if seen.dim() < 1 or seen.shape[-1] != classes:
        raise ValueError(
            f'seen has shape {tuple(seen.shape)} for {classes} classes; needed: one entry a class, as Vocabulary.seen_in gives it'
        )
    for name, value in weights.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"{name}={value} does not fit; allowed: [0, 1], CLIP's share. Published: {PRESETS}"
            )
