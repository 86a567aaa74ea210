"""DiT: class-conditional diffusion transformers (Peebles and Xie, ICCV 2023, https://arxiv.org/abs/2212.09748).

Network: diffusers' ``DiTTransformer2DModel``. Weights: facebook/DiT-XL-2-256 and -512, CC BY-NC 4.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .condition import Condition
from .cutting import PassThrough
from .latent import LatentDenoiser
from .model_files import ModelFiles, find_model
from .schedules import build_schedule
from .session import StopForward
from .taps import Tap
from .tracing import is_abstract


class DiT(LatentDenoiser):
    """A DiT in the latents of an autoencoder; its tokens are given as maps (B, C, H/16, W/16).

    Args:
        pretrained: a hub id (``facebook/DiT-XL-2-256``), a local diffusers folder, or a short name. None: random weights of ``config``.
        config: ``'dit-xl-2-256'``, ``'dit-xl-2-512'``, a folder with configs, or dict(transformer=…, vae=…, scheduler=…).
        schedule: a diffusers scheduler config; by default the model's own.
        random_seed: draw new weights from this seed, also where ``pretrained`` gives the architecture.
        keep_taps: drop the blocks behind the last of these taps; they are never read into memory.
        latent, scale_latent: see :class:`LatentDenoiser`.

    Without class ids the network is told the null class. Images of other sizes than it was trained on get diffusers'
    sine-cosine positions for their own height and width.
    """

    told = ('class_ids',)

    def __init__(
        self,
        pretrained: str | None = None,
        config: str | Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        random_seed: int | None = None,
        keep_taps: Iterable[str] | None = None,
        latent: str = 'mean',
        scale_latent: bool = True,
    ) -> None:
        super().__init__(latent, scale_latent)
        files = find_model(pretrained, config, 'transformer', schedule)
        if random_seed is None and pretrained is None:
            random_seed = 0
        self.schedule = build_schedule(files.schedule)
        self.transformer = _build_transformer(files, random_seed)
        self.null_class = self.transformer.config.num_embeds_ada_norm
        self.build_vae(files, random_seed)
        self.divisor = self.vae_stride * self.transformer.config.patch_size
        if keep_taps is not None:
            self.cut(keep_taps)
        if random_seed is None:
            self.read_weights(files)
            if self.runs_network:
                _fill_positions(self.transformer)
        for module in self.transformer.modules():
            if hasattr(
                module, 'dropout_prob'
            ):  # in train mode every block would drop labels on its own
                module.dropout_prob = 0.0
        self.transformer.requires_grad_(False).eval()
        self.fingerprint = files.fingerprint(random_seed)

    @property
    def network(self) -> nn.Module:
        return self.transformer

    def compile(self, taps: Sequence[str], **how: Any) -> None:  # type: ignore[override]
        """ValueError: looks end by an exception, which no graph holds."""
        raise ValueError('compile is for U-Nets: a DiT is not compiled here, leave it out')

    def run(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> None:
        """Up to the last linear layer: diffusers' un-patchify takes the square root of the number of tokens."""
        ids = condition.class_ids if condition is not None else None
        if ids is None:
            ids = torch.full((len(x_t),), self.null_class, device=x_t.device)
        elif not is_abstract(ids) and bool(((ids < 0) | (ids > self.null_class)).any()):
            raise ValueError(
                f'class ids {ids.tolist()} are unknown; allowed: 0 to {self.null_class} (the null class)'
            )
        dtype = self.transformer.pos_embed.proj.weight.dtype
        cut = isinstance(self.transformer.norm_out, PassThrough)
        end = self.transformer.norm_out if cut else self.transformer.proj_out_2
        handle = end.register_forward_hook(_stop)
        try:
            self.transformer(
                self.schedule.network_input(x_t, t).to(dtype),
                timestep=self.schedule.network_time(t),
                class_labels=ids,
            )
        except _Finished:
            pass
        finally:
            handle.remove()

    def shorten(self, last: Tap) -> None:
        parts = last.path.split('.')
        if parts[0] == 'transformer_blocks' and len(parts) > 1:
            self.transformer.transformer_blocks = self.transformer.transformer_blocks[
                : int(parts[1]) + 1
            ]
        elif parts[0] != 'pos_embed':
            return
        else:
            self.transformer.transformer_blocks = self.transformer.transformer_blocks[:1]
        for name in ('norm_out', 'proj_out_1', 'proj_out_2'):
            setattr(self.transformer, name, PassThrough())


class _Finished(StopForward):
    """The last layer has run."""


def _stop(_module: nn.Module, _args: Any, _output: Any) -> None:
    raise _Finished


def _build_transformer(files: ModelFiles, random_seed: int | None) -> nn.Module:
    from diffusers import DiTTransformer2DModel

    config = files.network.config
    kind = config.get('_class_name', 'DiTTransformer2DModel')
    if kind not in (
        'DiTTransformer2DModel',
        'Transformer2DModel',
    ):  # the second in folders of early diffusers
        raise ValueError(f'{files.name} holds a {kind}; DiT takes a DiTTransformer2DModel')
    if kind == 'Transformer2DModel':
        files.network.config = _early(config)
    return files.network.build(DiTTransformer2DModel, random_seed)


def _early(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that DiTTransformer2DModel has of a Transformer2DModel's config."""
    import inspect

    from diffusers import DiTTransformer2DModel

    allowed = inspect.signature(DiTTransformer2DModel.__init__).parameters
    return {key: value for key, value in config.items() if key in allowed and value is not None}


def _fill_positions(transformer: nn.Module) -> None:
    """The position table is in no checkpoint: it is computed, which the meta device left out."""
    from diffusers import DiTTransformer2DModel

    config = {**transformer.config, 'num_layers': 0}
    with torch.random.fork_rng(devices=[]):
        small = DiTTransformer2DModel.from_config(config)
    transformer.pos_embed.pos_embed = small.pos_embed.pos_embed
