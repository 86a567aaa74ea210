"""Embeddings without meaning: for measuring what a model costs, and what it finds by chance."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .hashing import digest
from .text_base import TextEncoder


class RandomText(TextEncoder):
    """Each text has its own random direction, the same in every run: drawn from a hash of the text and the seed.

    Args:
        width: of the embeddings, at least 1.
        seed: another one gives other embeddings.

    Raises:
        ValueError: a width below 1.
    """

    def __init__(self, width: int, seed: int = 0) -> None:
        if width < 1:
            raise ValueError(f'width={width} does not fit; allowed: at least 1')
        self.width, self.seed = width, seed
        self.fingerprint = digest(b'RandomText', str(width).encode(), str(seed).encode())

    def _embed(self, texts: list[str]) -> Tensor:
        return torch.stack([self._one(text) for text in texts])

    def _one(self, text: str) -> Tensor:
        found = hashlib.sha256(f'{self.seed} {text}'.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(found[:7], 'big'))
        return torch.randn(self.width, generator=generator)
