"""What latent diffusion models share: an autoencoder in front, whose activations can be tapped too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .cutting import PassThrough, shorten_stages
from .denoiser import Denoiser, Latent
from .model_files import ModelFiles
from .taps import Tap, TapSession

LATENTS = ('mean', 'mode', 'sample')
ENCODER, DECODER = 'vae.encoder', 'vae.decoder'


class LatentDenoiser(Denoiser):
    """A network that denoises the latents of an ``AutoencoderKL``.

    The autoencoder is registered below the network as ``vae``, so that one tree has every path: ``up_blocks.1``,
    ``vae.encoder.down_blocks.2``. Taps in the decoder see it decode the clean latent's mean.

    Args:
        latent: x0 is the posterior's ``'mean'``, its ``'mode'`` (the same for a Gaussian), or a ``'sample'`` of it.
        scale_latent: multiply it by the autoencoder's scaling factor, as in training.
    """

    image_channels = 3

    def __init__(self, latent: str = 'mean', scale_latent: bool = True) -> None:
        super().__init__()
        if latent not in LATENTS:
            raise ValueError(f'latent={latent!r} is unknown; allowed: {LATENTS}')
        self.latent = latent
        self.scale_latent = scale_latent
        self.runs_network = True  # False: only the autoencoder is tapped

    def build_vae(self, files: ModelFiles, random_seed: int | None) -> None:
        """The autoencoder, without weights where they come from files."""
        from diffusers import AutoencoderKL

        vae = files.vae.build(AutoencoderKL, random_seed)
        self.network.add_module('vae', vae)
        self.vae_stride = 2 ** (len(vae.config.block_out_channels) - 1)
        self.scaling_factor = vae.config.scaling_factor if self.scale_latent else 1.0
        if vae.config.latent_channels != self.network.config.in_channels:
            raise ValueError(
                f'the autoencoder gives {vae.config.latent_channels} channels, the network takes {self.network.config.in_channels}: '
                'they do not belong together'
            )

    def read_weights(self, files: ModelFiles) -> None:
        files.network.fill(self.network, files.name, skip='vae.')
        files.vae.fill(self.vae, files.name)

    @property
    def vae(self) -> nn.Module:
        return self.network.vae

    def is_static(self, name: str) -> bool:
        return self.tap(name).path.split('.')[0] == 'vae'

    def encode(self, image: Tensor) -> Tensor:
        """The posterior's mean (B, C, H/8, W/8), scaled."""
        return self._posterior(image).mean * self.scaling_factor

    def _posterior(self, image: Tensor) -> Latent:
        dtype = next(self.vae.parameters()).dtype
        posterior = self.vae.encode(image.to(dtype)).latent_dist
        return Latent(posterior.mean, posterior.std)

    def encode_tapped(
        self, image: Tensor, taps: Sequence[str] = (), latent: bool = True
    ) -> tuple[Latent | None, dict[str, Tensor]]:
        names = {self.tap(name): name for name in taps}
        before = [tap for tap in names if not tap.path.startswith(DECODER)]
        behind = [tap for tap in names if tap.path.startswith(DECODER)]
        session = TapSession(self.network, before, stop=not (latent or behind))
        posterior = None
        with self._reading(session):
            posterior = self._posterior(image)
        maps = dict(session.captured)
        if behind:
            assert posterior is not None
            session = TapSession(self.network, behind)
            with self._reading(session):
                self.vae.decode(posterior.mean)
            maps.update(session.captured)
        found = {names[tap]: value for tap, value in maps.items()}
        self.check_maps(found, list(names.values()))
        if not latent:
            return None, found
        assert posterior is not None and posterior.std is not None
        std = posterior.std * self.scaling_factor if self.latent == 'sample' else None
        return Latent(posterior.mean * self.scaling_factor, std), found

    def run_all(self, image: Tensor, t: Tensor) -> None:
        if getattr(self.vae, 'quant_conv', None) is None and not self.runs_network:
            self.vae.encoder(image)
            return
        posterior = self._posterior(image)
        if self.runs_network:
            self.run(posterior.mean, t, None)
        if self.vae.decoder is not None:
            self.vae.decode(posterior.mean)

    def cut(self, taps: Iterable[str]) -> None:
        """Shorten network, encoder and decoder each behind its last tap; what is not tapped at all goes."""
        wanted = {self.tap(name) for name in taps}
        places = {
            place: {tap for tap in wanted if (tap.path + '.').startswith(place + '.')}
            for place in (ENCODER, DECODER)
        }
        moving = {tap for tap in wanted if tap.path.split('.')[0] != 'vae'}
        loose = wanted - moving - places[ENCODER] - places[DECODER]
        last = {place: self._last(found) for place, found in places.items() if found}
        last_moving = self._last(moving) if moving else None
        if last_moving is not None:
            self.shorten(last_moving)
        else:
            self._drop_network()
        if loose:  # quant_conv and the like: too little to gain
            return
        if DECODER in last:
            shorten_stages(self.vae.decoder, _below(last[DECODER], DECODER), ('conv_in', 'mid_block', 'up_blocks'))
        else:
            self.vae.decoder = self.vae.post_quant_conv = None
            if not moving:
                self.vae.quant_conv = None
                shorten_stages(
                    self.vae.encoder, _below(last[ENCODER], ENCODER), ('conv_in', 'down_blocks', 'mid_block')
                )
        self._trace_cache.clear()

    def _drop_network(self) -> None:
        """The autoencoder's features need nothing else."""
        self.runs_network = False
        for name, _ in list(self.network.named_children()):
            if name != 'vae':
                setattr(self.network, name, PassThrough())

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        if not any(hasattr(module, 'gradient_checkpointing') for module in self.network.modules()):
            return
        if enabled:
            self.network.enable_gradient_checkpointing(self.checkpoint)
        else:
            self.network.disable_gradient_checkpointing()


def _below(tap: Tap, place: str) -> Tap:
    """The tap with its path from ``place`` on; the whole of it is its end."""
    return Tap(tap.path[len(place) + 1 :] or 'conv_out', tap.side)


def column(value: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """(1 or B, …) -> (B, …), in a network's dtype."""
    return value.to(dtype).expand(batch, *value.shape[1:])
