"""What latent diffusion models share: an autoencoder in front, whose activations can be tapped too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .condition import Latent
from .cutting import PassThrough, shorten_stages
from .denoiser import Denoiser
from .model_files import ModelFiles
from .session import TapSession
from .taps import Tap

LATENTS = ('mean', 'mode', 'sample')
BEHIND = ('post_quant_conv', 'decoder')  # the parts of an autoencoder that take the latent


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
        self.gives_latent = True  # False: only its encoder is

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
        return _part(self.tap(name)) is not None

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
        names: dict[Tap, list[str]] = {}  # an alias and a path may name the same place
        for name in taps:
            names.setdefault(self.tap(name), []).append(str(name))
        behind = [tap for tap in names if _part(tap) in BEHIND]
        before = [tap for tap in names if tap not in behind]
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
        found = {name: value for tap, value in maps.items() for name in names[tap]}
        self.check_maps(found, list(taps))
        if not latent:
            return None, found
        assert posterior is not None and posterior.std is not None
        std = posterior.std * self.scaling_factor if self.latent == 'sample' else None
        return Latent(posterior.mean * self.scaling_factor, std), found

    def run_all(self, image: Tensor, t: Tensor) -> None:
        if not self.gives_latent:
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
        behind = {tap for tap in wanted if _part(tap) in BEHIND}
        moving = {tap for tap in wanted if _part(tap) is None}
        before = wanted - behind - moving
        # all three are found while everything is still there
        last, last_before, last_behind = (
            self._last(found) if found else None for found in (moving, before, behind)
        )
        self.note_infos(wanted)
        if last is not None:
            self.shorten(last)
        else:
            self._drop_network()
        self._shorten_decoder(last_behind)
        if not moving and not behind and last_before is not None:
            self._shorten_encoder(last_before)
        self._trace_cache.clear()

    def _drop_network(self) -> None:
        """The autoencoder's features need nothing else."""
        self.runs_network = False
        for name, _ in list(self.network.named_children()):
            if name != 'vae':
                setattr(self.network, name, PassThrough())

    def _shorten_decoder(self, last: Tap | None) -> None:
        if last is None:
            self.vae.decoder = self.vae.post_quant_conv = None
        elif _part(last) == 'post_quant_conv':
            self.vae.decoder = PassThrough()
        else:
            shorten_stages(self.vae.decoder, _inside(last), ('conv_in', 'mid_block', 'up_blocks'))

    def _shorten_encoder(self, last: Tap) -> None:
        """Nothing needs the latent."""
        if _part(last) == 'quant_conv':
            return
        self.gives_latent = False
        self.vae.quant_conv = None
        shorten_stages(self.vae.encoder, _inside(last), ('conv_in', 'down_blocks', 'mid_block'))


def _part(tap: Tap) -> str | None:
    """Which part of the autoencoder a tap is in; None: in the network."""
    place, _, rest = tap.path.partition('.')
    return rest.partition('.')[0] if place == 'vae' else None


def _inside(tap: Tap) -> Tap:
    """The tap with its path within encoder or decoder; the whole of it is its end."""
    return Tap('.'.join(tap.path.split('.')[2:]) or 'conv_out', tap.side)


def column(value: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """(1 or B, …) -> (B, …), in a network's dtype."""
    return value.to(dtype).expand(batch, *value.shape[1:])
