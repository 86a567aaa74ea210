"""The published procedures, written plainly on diffusers' own untouched modules: what this project is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def tapped(network: nn.Module, paths: Sequence[str], run: Callable[[], Any]) -> dict[str, Tensor]:
    """Activations at ``path`` or ``path:in`` in a forward pass that goes to its end."""
    found: dict[str, Tensor] = {}
    handles = []
    for path in paths:
        place, _, side = path.partition(':')
        module = network.get_submodule(place)

        def before(_module: Any, inputs: Any, path: str = path) -> None:
            found.setdefault(path, inputs[0])

        def after(_module: Any, _inputs: Any, output: Any, path: str = path) -> None:
            found.setdefault(path, output[0] if isinstance(output, tuple) else output)

        handles.append(module.register_forward_pre_hook(before) if side == 'in' else module.register_forward_hook(after))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def as_map(value: Tensor, x_t: Tensor) -> Tensor:
    """Tokens (B, N, C) of an input (B, c, h, w) as a map of its proportions."""
    if value.dim() == 4:
        return value
    rows = round((value.shape[1] * x_t.shape[-2] / x_t.shape[-1]) ** 0.5)
    return value.transpose(1, 2).unflatten(2, (rows, -1))


def text_tower(width: int) -> nn.Module:
    """CLIP ViT-L/14's text tower, random: what ODISE asks at every look, though the answer is the same."""
    from transformers import CLIPTextConfig, CLIPTextModel

    size = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    if width < 768:  # in a test
        size = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    return CLIPTextModel(CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **size)).eval()


def odise_window(
    net: Any, text: nn.Module | None, window: Tensor, taps: Sequence[str], timestep: float = 0, noise: NoisePolicy | None = None,
    tokens: Tensor | None = None, time_bias: Tensor | None = None, decode: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """ODISE: text encoder, autoencoder there and back, and the whole U-Net for one window (1, 3, h, w).

    ``tokens`` and ``time_bias`` are what ODISE's captioner says; by default the network is told the fixed text.
    """
    vae, unet = net.unet.vae, net.unet
    if text is not None:
        text(torch.zeros(1, 77, dtype=torch.long, device=window.device))  # its answer is not used, so that answers can be compared
    tokens = net.tokens if tokens is None else tokens

    def run() -> None:
        mean = vae.encode(window).latent_dist.mean
        x0 = mean * vae.config.scaling_factor
        t = torch.full((1,), timestep, dtype=torch.long, device=window.device)
        drawn = (noise or NoisePolicy('shared', 0, 1)).draw(tuple(x0.shape))
        x_t = x0 if drawn is None else net.schedule.add_noise(x0, drawn.to(x0), t)
        unet(x_t, t, encoder_hidden_states=tokens)
        if decode:
            vae.decode(mean)

    if time_bias is None:
        return tapped(unet, taps, run)
    handle = unet.time_embedding.register_forward_hook(lambda _module, _inputs, output: output + time_bias)
    try:
        return tapped(unet, taps, run)
    finally:
        handle.remove()


class KeptProbs:
    """VPD's attention: the probabilities of all heads as one tensor, kept."""

    def __init__(self, kept: dict[str, Tensor], name: str) -> None:
        self.kept, self.name = kept, name

    def __call__(self, attn: Any, x: Tensor, encoder_hidden_states: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        told = x if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(part) for part in (attn.to_q(x), attn.to_k(told), attn.to_v(told)))
        probs = (torch.einsum('bid,bjd->bij', q, k) * attn.scale).softmax(-1)
        if encoder_hidden_states is not None:
            self.kept[self.name] = probs
        return attn.to_out[0](attn.batch_to_head_dim(probs @ v))


def vpd(
    unet: Any, x_t: Tensor, t: Tensor, tokens: Tensor, maps: Sequence[str], cross: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """VPD: maps, and cross-attention probabilities averaged over heads as maps (1, L, h, w), from a forward pass that materialises all of them."""
    kept: dict[str, Tensor] = {}
    before = dict(unet.attn_processors)
    unet.set_attn_processor({name: KeptProbs(kept, name.removesuffix('.processor')) for name in before if not name.startswith('vae.')} | {
        name: processor for name, processor in before.items() if name.startswith('vae.')
    })  # fmt: skip
    try:
        found = tapped(unet, maps, lambda: unet(x_t, t, encoder_hidden_states=tokens.expand(len(x_t), -1, -1)))
    finally:
        unet.set_attn_processor(before)
    return found, {name: as_map(kept[name].mean(0, keepdim=True), x_t) for name in cross}


def ddpm_seg_classifier(channels: int, classes: int) -> nn.Sequential:
    """DDPM-Seg's pixel classifier for fewer than 30 classes."""
    return nn.Sequential(
        nn.Linear(channels, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, classes)
    )
