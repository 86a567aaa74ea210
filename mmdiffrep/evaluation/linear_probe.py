"""A linear classifier on frozen features (DDAE, Xiang et al., ICCV 2023, section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiffrep.diffusion.session import TapSession
from mmdiffrep.diffusion.taps import Tap


def linear_probe(features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, **settings: Any) -> float:
    """Top-1 accuracy in percent of :func:`linear_predictions`, which takes the settings."""
    predicted = linear_predictions(features, labels, val_features, val_labels, **settings)
    return 100 * (predicted == val_labels).float().mean().item()


def linear_predictions(
    features: Tensor,
    labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    epochs: int = 15,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
) -> Tensor:
    """Classes (N,) that one linear layer predicts from (N, C) features after training: Adam, cosine rate, cross entropy.

    Features are standardised by the training set's mean and deviation first, so that one rate fits every tap.

    Raises:
        ValueError: features and labels differ in number, or are not (N, C) and (N,).
    """
    for what, x, y in (('training', features, labels), ('validation', val_features, val_labels)):
        if x.dim() != 2 or y.dim() != 1 or len(x) != len(y) or not len(x):
            raise ValueError(f'{what} features {tuple(x.shape)} and labels {tuple(y.shape)} do not fit; allowed: (N, C) and (N,), N > 0')
    mean, deviation = features.float().mean(0), features.float().std(0, correction=0) + 1e-6
    x, x_val = ((value.float() - mean) / deviation for value in (features, val_features))
    generator = torch.Generator().manual_seed(seed)
    classes = int(max(labels.max(), val_labels.max())) + 1
    layer = nn.Linear(x.shape[1], classes)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.Adam(layer.parameters(), lr)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    with torch.enable_grad():
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                loss = F.cross_entropy(layer(x[rows]), labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        return layer(x_val).argmax(1)


@torch.no_grad()
def pooled_features(model: Any, images: Tensor, t: float, taps: Sequence[str]) -> dict[str, Tensor]:
    """Global average of each tap's map, (B, C) fp32, of images (B, 3, H, W) in [-1, 1] noised to ``t``; told nothing."""
    was_training = model.training
    model.eval()
    session = TapSession(model.network, [Tap.parse(tap) for tap in taps])
    try:
        x0 = model.encode(images)
        times = torch.full((len(images),), t, device=images.device)
        x_t = model.schedule.add_noise(x0, torch.randn(x0.shape).to(x0), times)
        with session():  # ends the pass behind the last tap
            model(x_t, times, model.condition(len(images)))
    finally:
        model.train(was_training)
    maps = {tap: session.captured[Tap.parse(tap)] for tap in taps}
    wrong = [f'{tap} {tuple(value.shape)}' for tap, value in maps.items() if value.dim() != 4]
    if wrong:
        raise ValueError(f'taps {wrong} are no maps (B, C, h, w), which alone can be pooled: tap a block or a layer of the image')
    return {tap: value.float().flatten(2).mean(2) for tap, value in maps.items()}
