"""Scores of frozen features: neighbours and logistic regression with labels; rank and agreement without."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # rows that are compared at once


def knn_probe(features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, k: int = 20, temperature: float = 0.07) -> float:
    """Top-1 accuracy in percent of a weighted vote of the k nearest by cosine, weights exp(cosine / temperature).

    As in Wu et al., CVPR 2018, section 3.4. Features (N, C) are centred by the training set's mean first.

    Raises:
        ValueError: k below 1 or above the number of training rows.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f'k={k} neighbours of {len(features)} images do not fit; allowed: 1 to {len(features)}')
    mean = features.float().mean(0)
    x, x_val = (F.normalize(f.float() - mean, dim=1) for f in (features, val_features))
    classes = int(max(labels.max(), val_labels.max())) + 1
    hits = 0
    for rows, truth in zip(x_val.split(CHUNK), val_labels.split(CHUNK)):
        nearest = (rows @ x.t()).topk(k, dim=1)
        votes = torch.zeros(len(rows), classes).scatter_add_(1, labels[nearest.indices], (nearest.values / temperature).exp())
        hits += int((votes.argmax(1) == truth).sum())
    return 100 * hits / len(val_labels)


def logistic_probe(features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, strength: float = 1.0) -> float:
    """Top-1 accuracy in percent of scikit-learn's logistic regression (L-BFGS) on standardised features.

    Args:
        strength: its ``C``, the inverse of the regularisation.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the logistic probe is scikit-learn's, which is not installed: pip install 'mmdiffrep[probes]', or take --probe linear"
        ) from error
    mean, deviation = features.float().mean(0), features.float().std(0, correction=0) + 1e-6
    x, x_val = (((f.float() - mean) / deviation).numpy() for f in (features, val_features))
    model = LogisticRegression(C=strength, max_iter=1000).fit(x, labels.numpy())
    return 100 * float(model.score(x_val, val_labels.numpy()))


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values' shares: how many directions (N, C) features spread over, 1 … min(N, C).

    Roy and Vetterli 2007; as a choice without labels, RankMe (Garrido et al., ICML 2023). Features are centred first, since a large
    mean alone would be one direction.
    """
    values = torch.linalg.svdvals(features.float() - features.float().mean(0))
    shares = values / values.sum().clamp(min=1e-12)
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


def agreement(first: Tensor, second: Tensor) -> float:
    """Linear CKA of the same images' features under two draws of noise, (N, C) each: 1 where the noise changes nothing.

    Kornblith et al., ICML 2019: ‖X'Y‖² / (‖X'X‖ ‖Y'Y‖) of centred features.
    """
    x, y = (f.double() - f.double().mean(0) for f in (first, second))
    cross = torch.linalg.matrix_norm(x.t() @ y) ** 2
    return float(cross / (torch.linalg.matrix_norm(x.t() @ x) * torch.linalg.matrix_norm(y.t() @ y)).clamp(min=1e-24))


def spearman(first: Tensor, second: Tensor) -> float:
    """Rank correlation of two lists (n,); ties get their mean rank."""
    ranks = []
    for values in (first.double(), second.double()):
        below = (values[:, None] > values[None]).sum(1)
        same = (values[:, None] == values[None]).sum(1)
        ranks.append(below + (same - 1) / 2)
    a, b = (r - r.mean() for r in ranks)
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-12))
