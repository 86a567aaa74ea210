"""StableDiffusion: text-conditional latent diffusion (SD 1.x, SD 2.x; diffusers' ``UNet2DConditionModel`` and ``AutoencoderKL``).

Rombach et al., CVPR 2022, https://arxiv.org/abs/2112.10752. Weights: CreativeML Open RAIL-M.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .condition import Condition
from .cutting import shorten_unet
from .latent import LatentDenoiser, column
from .model_files import ModelFiles, find_model
from .schedules import build_schedule
from .speed import remember_what_is_told
from .taps import Tap
from .text import TextEncoder, class_tokens, load_tokens, tokens_digest


class StableDiffusion(LatentDenoiser):
    """SD 1.x or 2.x, told a fixed text unless a :class:`Condition` says another.

    Args:
        pretrained: a hub id, a local diffusers folder, a single ``.safetensors`` or ``.ckpt`` file in CompVis' layout, or a short
            name. None: random weights of ``config``.
        config: an architecture: ``'sd15'``, ``'sd21'``, ``'sd21-base'``, a folder with configs, or dict(unet=…, vae=…, scheduler=…).
            A single file's is recognised by its shapes.
        schedule: a diffusers scheduler config; by default the model's own.
        prediction_type: ``'epsilon'`` or ``'v_prediction'``; needed for a single SD 2.x file, which does not say.
        random_seed: draw new weights from this seed, also where ``pretrained`` gives the architecture. Text tokens are then drawn
            too: there is no text encoder.
        keep_taps: shorten the network behind the last of these taps; what is behind is never read into memory.
        latent, scale_latent: see :class:`LatentDenoiser`.
        prompt: the fixed text. It is encoded once, then the text encoder is released.
        tokens: a saved embedding (L, D) instead of a prompt.
        class_names, templates: one token a class name instead of a prompt.
        keep_text_encoder: keep it (on the CPU), for prompts that differ from image to image.
    """

    told = ('tokens', 'time_bias')

    def __init__(
        self,
        pretrained: str | None = None,
        config: str | Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        prediction_type: str | None = None,
        random_seed: int | None = None,
        keep_taps: Iterable[str] | None = None,
        latent: str = 'mean',
        scale_latent: bool = True,
        prompt: str | None = None,
        tokens: str | None = None,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] = ('a photo of a {}.',),
        keep_text_encoder: bool = False,
    ) -> None:
        super().__init__(latent, scale_latent)
        if sum(value is not None for value in (prompt, tokens, class_names)) > 1:
            raise ValueError(
                f'give one of prompt={prompt!r}, tokens={tokens!r} and class_names={class_names!r}'
            )
        files = find_model(pretrained, config, 'unet', schedule, prediction_type)
        if random_seed is None and pretrained is None:
            random_seed = 0
        self.schedule = build_schedule(files.schedule)
        self.unet = _build_unet(files, random_seed)
        self.build_vae(files, random_seed)
        # on the way down all levels but the last halve the map
        self.divisor = self.vae_stride * 2 ** (len(self.unet.config.block_out_channels) - 1)

        kept = None if keep_taps is None else list(keep_taps)
        asks_network = kept is None or not all(self.is_static(name) for name in kept)
        self._text: list[TextEncoder] = []  # in a list: no module, stays on the CPU
        self.random_tokens = random_seed is not None
        if random_seed is None and (keep_text_encoder or (asks_network and tokens is None)):
            self._text.append(TextEncoder(files))
        self.register_buffer(
            'tokens', self._fixed_tokens(prompt, tokens, class_names, templates, random_seed), False
        )
        if not keep_text_encoder:
            self._text.clear()
        if kept is not None:
            self.cut(kept)
        if random_seed is None:
            self.read_weights(files)
        self.unet.requires_grad_(False).eval()
        if self.runs_network:
            remember_what_is_told(self.unet)
        self._cast: dict[torch.dtype, tuple[Tensor, int, Tensor]] = {}  # the fixed text in the network's dtype
        self.fingerprint = f'{files.fingerprint(random_seed)} text:{tokens_digest(self.tokens)}'

    def _fixed_tokens(
        self,
        prompt: str | None,
        tokens: str | None,
        class_names: Sequence[str] | None,
        templates: Sequence[str],
        random_seed: int | None,
    ) -> Tensor:
        width = self.unet.config.cross_attention_dim
        if tokens is not None:
            return load_tokens(tokens, width)
        if self._text:
            if class_names is not None:
                return class_tokens(self._text[0], class_names, templates)
            return self._text[0]([prompt or ''])
        count = 77 if class_names is None else len(class_names)
        return torch.randn(
            1, count, width, generator=torch.Generator().manual_seed(random_seed or 0)
        )

    @property
    def network(self) -> nn.Module:
        return self.unet

    def default_condition(self, batch: int) -> Condition:
        return Condition(tokens=self.tokens)

    def condition_channels(self) -> dict[str, int]:
        return dict(
            token_channels=self.unet.config.cross_attention_dim,
            time_channels=self.unet.config.block_out_channels[0] * 4,
            token_count=self.tokens.shape[1],
        )

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> tokens (B, L, D) on the CPU, encoded once each.

        Raises:
            ValueError: there is no text encoder, or it was released.
        """
        if self.random_tokens:
            raise ValueError(
                'a network with random weights has no text encoder for prompts: leave random_seed out and give pretrained=…'
            )
        if not self._text:
            raise ValueError(
                'the text encoder was released after the fixed prompt: set keep_text_encoder=True in the denoiser for prompts that '
                'differ from image to image'
            )
        return self._text[0](prompts)

    def run(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        tokens = condition.tokens if condition is not None else None
        tokens = self.tokens if tokens is None else tokens
        width = self.unet.config.cross_attention_dim
        if tokens.dim() != 3 or tokens.shape[2] != width or tokens.shape[0] not in (1, len(x_t)):
            raise ValueError(
                f'tokens of shape {tuple(tokens.shape)} were given; allowed: (1 or {len(x_t)}, L, {width})'
            )
        dtype = self.unet.conv_in.weight.dtype
        return self.unet(
            self.schedule.network_input(x_t, t).to(dtype),
            self.schedule.network_time(t),
            encoder_hidden_states=column(self._in_dtype(tokens.to(x_t.device), dtype), len(x_t), dtype),
            return_dict=False,
        )[0]

    def _in_dtype(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """The fixed text cast once, so that attentions see the same tensor each time; other tokens as they are."""
        if tokens is not self.tokens or tokens.dtype == dtype or torch.compiler.is_compiling() or tokens.is_inference():
            return tokens
        kept = self._cast.get(dtype)
        if kept is None or kept[0] is not tokens or kept[1] != tokens._version:
            kept = self._cast[dtype] = (tokens, tokens._version, tokens.to(dtype))
        return kept[2]

    def shorten(self, last: Tap) -> None:
        shorten_unet(self.unet, last)

    def resolve_alias(self, name: str) -> str:
        """DIFT's ``dift:up.i`` is ``up_blocks[i]``, after its upsampler."""
        base, _, number = name.partition('dift:up.')
        if base or not number:
            return name
        return f'up_blocks.{number}'


def _build_unet(files: ModelFiles, random_seed: int | None) -> nn.Module:
    from diffusers import UNet2DConditionModel

    config = files.network.config
    kind = config.get('_class_name', 'UNet2DConditionModel')
    if kind != 'UNet2DConditionModel':
        raise ValueError(
            f'{files.name} holds a {kind}; StableDiffusion takes a UNet2DConditionModel. For a diffusion network in pixels use '
            'mmdiffrep.PixelUNet, for a DiT mmdiffrep.DiT'
        )
    if config.get('addition_embed_type') is not None or config.get('in_channels', 4) != 4:
        raise ValueError(
            f'{files.name} is not SD 1.x or 2.x (in_channels={config.get("in_channels")}, '
            f'addition_embed_type={config.get("addition_embed_type")!r}): SDXL and inpainting models are not supported'
        )
    return files.network.build(UNet2DConditionModel, random_seed)
