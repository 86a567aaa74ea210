"""Noise policies: what noise an image gets before the network looks at it.

Noise at a place depends on the seed, the channel, y and x alone (and, for ``per_image``, on a hash of the image's own
pixels), and is drawn on the CPU. So it is the same in any batch, with any padding, for any image size, on any device.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KINDS = ('none', 'fresh', 'shared', 'per_image')
# draws from here on are an autoencoder's own: they pick x0 from its posterior
LATENT_STREAM = 1 << 20


@dataclass(frozen=True)
class NoisePolicy:
    """Which noise is drawn.

    Args:
        kind: ``'none'`` (the clean image goes in, at any timestep), ``'fresh'`` (new in every call, from torch's default
            CPU generator), ``'shared'`` (one noise image for all images) or ``'per_image'`` (seeded by the image).
        seed: for ``shared`` and ``per_image``.
        draws: features are averaged over this many draws (an ensemble).
    """

    kind: str = 'shared'
    seed: int = 0
    draws: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f'noise kind {self.kind!r} is unknown; allowed: {KINDS}')
        if not isinstance(self.draws, int) or self.draws < 1:
            raise ValueError(f'noise draws must be a whole number of at least 1, got {self.draws!r}')
        if self.kind == 'none' and self.draws > 1:
            raise ValueError(
                f"noise kind 'none' gives the same features in every draw: draws={self.draws} would only "
                "repeat the work. Use draws=1, or kind='fresh'"
            )

    @property
    def deterministic(self) -> bool:
        """Whether the same image gets the same noise in every call."""
        return self.kind != 'fresh'

    def draw(
        self, shape: tuple[int, int, int, int], index: int = 0, image_keys: list[int] | None = None
    ) -> Tensor | None:
        """Draw number ``index`` for a batch of ``shape`` (B, C, H, W): standard normal, float32, on the CPU.

        ``image_keys`` (one int an image, see :func:`image_key`) are needed for ``per_image`` only. None for ``none``.
        """
        if self.kind == 'none':
            return None
        if self.kind == 'fresh':
            return torch.randn(shape)
        if self.kind == 'shared':
            return seeded_noise(self.seed, index, 0, shape[1:])[None].expand(shape)
        if image_keys is None or len(image_keys) != shape[0]:
            raise ValueError(
                f'per-image noise needs one key an image: {shape[0]} images, keys {image_keys}'
            )
        # past the cache: an image rarely comes again before its entry would be gone
        draw = seeded_noise.__wrapped__
        return torch.stack([draw(self.seed, index, key, shape[1:]) for key in image_keys])


@functools.lru_cache(maxsize=16)
def seeded_noise(seed: int, draw: int, image_key: int, shape: tuple[int, int, int]) -> Tensor:
    """Standard normal noise (C, H, W) whose every element depends on (seed, draw, image_key, c, y, x) alone.

    A counter-based generator: SplitMix64's mixing function (Steele et al., OOPSLA 2014) of the coordinates, then
    Box–Muller. Coordinates below 2**20.
    """
    axes: list[np.ndarray] = [np.arange(n, dtype=np.uint64) for n in shape]
    c, y, x = axes
    twenty, forty = np.uint64(20), np.uint64(40)
    place = (
        (c[:, None, None] << forty) | (y[None, :, None] << twenty) | x[None, None, :]
    )
    digest = hashlib.blake2b(f'{seed}/{draw}/{image_key}'.encode(), digest_size=16).digest()
    key_a, key_b = np.frombuffer(digest, dtype=np.uint64)
    bits = _mix(_mix(place + key_a) ^ key_b)
    # 32 bits each; the half keeps u1 away from 0
    u1 = ((bits >> np.uint64(32)).astype(np.float64) + 0.5) / 2.0**32
    u2 = (bits & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2.0**32
    normal = np.sqrt(-2.0 * np.log(u1)) * np.cos(2.0 * np.pi * u2)
    return torch.from_numpy(normal.astype(np.float32))


def _mix(z: np.ndarray) -> np.ndarray:
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def image_key(image: Tensor) -> int:
    """A hash of an image's own pixels, (C, H, W) in [-1, 1], which does not see constant padding at the bottom and right.

    Values are rounded to 8 bits first, so that it does not depend on the rounding of a normalisation and its inverse.
    """
    pixels = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    pixels = _without_border(pixels.numpy())
    header = str(pixels.shape).encode()
    return int.from_bytes(
        hashlib.blake2b(header + np.ascontiguousarray(pixels).tobytes(), digest_size=8).digest(), 'little'
    )


def _without_border(pixels: np.ndarray) -> np.ndarray:
    """Trim rows and columns of one colour from the bottom and the right, until there are none.

    Repeated to a fixed point, so that an image whose own border is of one colour is trimmed alike with and without padding.
    """
    while pixels.size:
        same = (pixels == pixels[:, -1:, -1:]).all(0)  # (H, W)
        if same.all():
            return pixels[:, :1, :1]
        rows, columns = same.all(1), same.all(0)
        height = len(rows) - int(np.argmin(rows[::-1]))
        width = len(columns) - int(np.argmin(columns[::-1]))
        if (height, width) == pixels.shape[1:]:
            return pixels
        pixels = pixels[:, :height, :width]
    return pixels
