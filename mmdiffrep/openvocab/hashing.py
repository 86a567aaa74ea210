"""Hashes that name what embeddings are made with: weights, texts, settings."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn


def digest(*parts: bytes) -> str:
    """A hash of parts, which cannot run into each other."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return f'sha256:{whole.hexdigest()}'


def tensor_bytes(tensor: Tensor) -> bytes:
    tensor = tensor.detach().float().cpu().contiguous()
    return str(tuple(tensor.shape)).encode() + tensor.numpy().tobytes()


def weights_hash(module: nn.Module, *more: Any) -> str:
    """SHA-256 of the names, types, shapes and values of all weights, and of what else is given; without values on the meta device."""
    found = hashlib.sha256(repr(more).encode())
    for name, value in sorted(module.state_dict().items()):
        found.update(f'{name} {value.dtype} {tuple(value.shape)}'.encode())
        if not value.is_meta:
            if hasattr(value, 'dequantize') and type(value) is not Tensor:
                value = value.dequantize()  # torchao's
            raw = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(memoryview(raw.numpy()))
    return f'sha256:{found.hexdigest()}'
