"""Memory over many iterations of changing work: training, extraction, and asking for other words each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TAPS = ['up_blocks.0.attentions.1', 'up_blocks.1.attentions.1', 'up_blocks.2.resnets.1']
SIDES = (24, 32, 40)
WORDS = ('red', 'green', 'blue', 'disc', 'star', 'square', 'sky', 'grass', 'ring', 'cross')


def _backbone(**more: Any) -> Any:
    import mmdiffrep  # noqa: F401
    from mmdiffrep.registry import MODELS

    denoiser = dict(type='mmdiffrep.PixelUNet', pretrained='mmdiffrep/toy-unet')
    return MODELS.build(
        dict(type='mmdiffrep.DiffusionBackbone', denoiser=denoiser, taps=TAPS, timesteps=10, image_mean=[0] * 3, image_std=[1] * 3, **more)
    )


def _images(draws: random.Random, most: int = 2) -> Tensor:
    count, height, width = draws.randint(1, most), draws.choice(SIDES), draws.choice(SIDES)
    return torch.rand(count, 3, height, width) * 255


def training() -> Iterator[None]:
    """Steps of a pyramid and a head on the frozen toy U-Net, sizes and batches changing."""
    net = _backbone(adapter=dict(type='mmdiffrep.StridePyramid', out_channels=32)).train()
    head = nn.Conv2d(32, 13, 1)
    optimizer = torch.optim.AdamW([*net.adapter.parameters(), *head.parameters()], lr=1e-3)
    draws = random.Random(0)
    while True:
        loss = head(net(_images(draws))[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def extraction() -> Iterator[None]:
    """Features by the toy U-Net, sizes and batches changing; noise seeded by each image."""
    net, draws = _backbone(noise=dict(kind='per_image', draws=2)).eval(), random.Random(1)
    while True:
        with torch.no_grad():
            net(_images(draws))
        yield


def inference() -> Iterator[None]:
    """Pictures of changing sizes, asked of the toy ODISE for other words each time."""
    from mmdiffrep.apis import OpenVocabInferencer

    ask = OpenVocabInferencer('odise_toy-unet_1200i_toyscenes-64x64', 'mmdiffrep/toy-odise', device='cpu')
    draws = random.Random(2)
    pixels = np.random.default_rng(0)
    number = 0
    while True:
        image = pixels.integers(256, size=(draws.choice(SIDES), draws.choice(SIDES), 3), dtype=np.uint8)
        words = [f'{a} {b} {number}' for a, b in {tuple(draws.sample(WORDS, 2)) for _ in range(draws.randint(2, 12))}]
        ask(image, words, progress=False)
        number += 1
        yield


KINDS: dict[str, Callable[[], Iterator[None]]] = dict(training=training, extraction=extraction, inference=inference)
