"""The published procedures, written plainly on diffusers' own untouched modules: what this project is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdiffrep.diffusion.noise import LATENT_STREAM, NoisePolicy


class Found(Exception):
    """A block's output; nothing behind it is run."""


def until(network: nn.Module, block: str, *args: Any, **kwargs: Any) -> Tensor:
    """A block's output in a forward pass of the network, which ends there."""

    def stop(_module: Any, _inputs: Any, output: Any) -> None:
        raise Found(output[0] if isinstance(output, tuple) else output)

    hook = network.get_submodule(block).register_forward_hook(stop)
    try:
        network(*args, **kwargs)
    except Found as found:
        return found.args[0]
    finally:
        hook.remove()
    raise ValueError(f'block {block!r} is not run')


def dift_features(
    unet: nn.Module, vae: nn.Module, schedule: Any, image: Tensor, tokens: Tensor, block: str, timestep: int, draws: int
) -> Tensor:
    """DIFT: ``draws`` copies of an image (1, 3, H, W) go through autoencoder and network, and are averaged: (C, h, w).

    Noise and latents are those of ``NoisePolicy('shared', 0, draws)``, so that answers can be compared.
    """
    policy = NoisePolicy('shared', 0, draws)
    posterior = vae.encode(image.repeat(draws, 1, 1, 1)).latent_dist
    shape = (1, *posterior.mean.shape[1:])
    latent, noise = (
        torch.cat([policy.draw(shape, k + stream) for k in range(draws)]).to(image) for stream in (LATENT_STREAM, 0)
    )
    x0 = (posterior.mean + posterior.std * latent) * vae.config.scaling_factor
    t = torch.full((draws,), timestep, device=image.device)
    x_t = schedule.add_noise(x0, noise, t)
    return until(unet, block, x_t, t, encoder_hidden_states=tokens.expand(draws, -1, -1)).mean(0)


def dift_match(source: Tensor, target: Tensor, points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """DIFT: both maps (C, h, w) are resized to the images (H, W) and compared there: places (n, 2) and scores (n,)."""
    a, b = (F.interpolate(m[None], size, mode='bilinear')[0] for m in (source, target))
    x, y = points.long().t()
    vectors = F.normalize(a[:, y, x], dim=0)
    scores = vectors.t() @ F.normalize(b.flatten(1), dim=0)
    best = scores.max(1)
    return torch.stack([best.indices % size[1], best.indices // size[1]], 1), best.values


def ddpm_seg_pixels(maps: Sequence[Tensor], y: Tensor, x: Tensor, size: tuple[int, int]) -> Tensor:
    """DDPM-Seg: all maps (C_k, h_k, w_k) are resized to the image and concatenated, then pixels are taken: (n, ΣC_k)."""
    whole = torch.cat([F.interpolate(m[None].float(), size, mode='bilinear')[0] for m in maps])
    return whole[:, y, x].t()
