"""Principal components: the directions in which features vary most, of one set or shared by a pair of images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def principal_components(samples: Tensor, count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """The directions in which samples (N, C) vary most.

    Returns:
        mean (C,), components (k, C) of unit length, variances (k,) in falling order, with k = min(count, N, C). A
        component's largest entry is positive, so that the same samples always give the same signs.

    Raises:
        ValueError: ``samples`` is not a matrix with at least one row, or not finite.
    """
    if samples.dim() != 2 or not samples.numel():
        raise ValueError(f'samples must be (N, C), got {tuple(samples.shape)}')
    x = samples.detach().double().cpu()
    if not x.isfinite().all():
        raise ValueError('samples hold NaN or infinity: the features overflowed (fp16?)')
    mean = x.mean(0)
    x = x - mean
    variances, vectors = torch.linalg.eigh(x.T @ x / len(x))  # rising order, columns
    k = min(count, *x.shape)
    components = vectors.T.flip(0)[:k]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return mean, components * largest.sign(), variances.flip(0)[:k].clamp(min=0)


def shared_components(maps: Sequence[Tensor], count: int) -> list[Tensor]:
    """Maps (C, h, w) of several images, reduced to ``count`` channels (or C, if those are fewer) by components found on all together.

    "Co-PCA": Zhang et al., "A Tale of Two Features", NeurIPS 2023, section 4.2. The mean is taken off.
    """
    if count < 1:
        raise ValueError(f'count={count} does not fit; allowed: 1 and more components')
    samples = torch.cat([m.flatten(1).t() for m in maps])
    mean, components, _ = principal_components(samples, count)
    mean, components = mean.to(samples), components.to(samples)
    return [
        ((m.flatten(1).t() - mean) @ components.t()).t().reshape(-1, *m.shape[1:]) for m in maps
    ]
