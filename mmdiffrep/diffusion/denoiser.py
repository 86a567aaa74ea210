"""The contract that every diffusion network fulfils: an image goes in, tapped activations come out."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from .compiled import CompiledTaps
from .condition import Condition, Latent
from .schedules import NoiseSchedule
from .session import TapSession
from .taps import PROBS, Tap, TapInfo, check_tap
from .tracing import TraceEvent, leaves, run_on_fakes, run_on_meta, trace


class Denoiser(nn.Module):
    """A diffusion network with its noise schedule and its autoencoder, if it has one.

    A family sets the attributes and implements :meth:`encode`, :meth:`run` and :meth:`shorten`.
    """

    schedule: NoiseSchedule
    divisor: int  # image sides must be multiples of it
    image_channels: int
    told: tuple[str, ...] = ()  # the fields of a Condition that the family knows
    # names the weights so that they can be found again; None if they cannot
    fingerprint: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self._session: TapSession | None = None
        self._compiled: CompiledTaps | None = None
        self._trace_cache: dict[tuple[int, int], list[TraceEvent]] = {}
        self.known_infos: dict[str, TapInfo] = {}  # of the taps for which the network was cut

    def __deepcopy__(self, memo: dict[int, Any]) -> Denoiser:
        """A copy, an EMA's say, is not compiled."""
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        left = ('_compiled', '_compiled_call_impl')
        clone.__dict__.update({name: copy.deepcopy(value, memo) for name, value in vars(self).items() if name not in left})
        clone._compiled = clone._compiled_call_impl = None
        if self._compiled is not None:
            self._compiled.leave(clone.network)
        return clone

    # ---- what a family implements -------------------------------------------------------------------------

    @property
    def network(self) -> nn.Module:
        """The module in which tap paths are looked up."""
        raise TypeError(f'{type(self).__name__} must define `network`')

    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [-1, 1] -> x0 (B, C, H/s, W/s)."""
        raise TypeError(f'{type(self).__name__} must define `encode`')

    def is_static(self, name: str) -> bool:
        """Whether a tap is in the autoencoder: it depends on the image alone, not on timestep, noise or condition."""
        return False

    def encode_tapped(
        self, image: Tensor, taps: Sequence[str] = (), latent: bool = True
    ) -> tuple[Latent | None, dict[str, Tensor]]:
        """x0 of images (B, 3, H, W) in [-1, 1], and the static taps' maps, each computed once.

        ``latent=False``: x0 is not needed, so that nothing behind the last tap is run.
        """
        return Latent(self.encode(image)), {}

    def default_condition(self, batch: int) -> Condition | None:
        """What the network is told when nothing is said."""
        return None

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> tokens (B, L, D)."""
        raise ValueError(f'{type(self).__name__} takes no text: leave prompts out')

    def condition_channels(self) -> dict[str, int]:
        """``token_channels``, ``time_channels``: widths of a :class:`Condition`'s parts, as far as the network has them, and
        ``token_count``: of its fixed text.
        """
        return {}

    def run(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Any:
        """One plain forward of the untouched network on noised input (B, C, h, w) at times t (B,)."""
        raise TypeError(f'{type(self).__name__} must define `run`')

    def shorten(self, last: Tap) -> None:
        """Drop the modules that run after ``last``; everything up to it computes what it did before."""
        raise TypeError(f'{type(self).__name__} must define `shorten`')

    def resolve_alias(self, name: str) -> str:
        """A paper alias (``'adm:out.5'``) as a tap string; names without a paper's prefix pass unchanged."""
        return name

    # ---- features -----------------------------------------------------------------------------------------

    def tap(self, name: str | Tap) -> Tap:
        """The tap that a tap string or paper alias names, checked against the network."""
        tap = name if isinstance(name, Tap) else Tap.parse(self.resolve_alias(name))
        check_tap(self.network, tap)
        return tap

    def features(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Condition | None = None,
        taps: Sequence[str] = (),
        inject: Mapping[str, Tensor] | None = None,
        check: bool = True,
    ) -> dict[str, Tensor]:
        """Look once at noised images and read activations.

        Args:
            x_t: noised input (B, C, h, w), as :meth:`NoiseSchedule.add_noise` makes it.
            t: timesteps (B,) in the schedule's own units.
            condition: what else the network is told.
            taps: tap strings or paper aliases. The pass ends after the last of them.
            inject: tap -> tensor, broadcastable to the activation there and added to it on its way. Gradients reach it,
                also under activation checkpointing. At a block of the down path (``down_blocks.1``) it is added to what the
                next block gets, not to the skip connections; at the block's last ResBlock or attention, to both.
            check: False where ``t`` is known to be right: its values are not asked for, which waits for an accelerator.

        Returns:
            The given names with their maps (B, C_k, h_k, w_k), in the order of execution.

        Raises:
            ValueError: an unknown tap, a tap that does not give a map, or a timestep outside the schedule.
        """
        if not taps:
            raise ValueError('features() needs at least one tap')
        if check:
            self.schedule.check_timesteps(t)
        names: dict[Tap, list[str]] = {}  # an alias and a path may name the same place
        for name in taps:
            names.setdefault(self.tap(name), []).append(str(name))
        static = [name for name in taps if self.is_static(name)]
        if static:
            raise ValueError(
                f'taps {static} are in the autoencoder, which features() does not run: read them with encode_tapped(), or all '
                'with a FeatureExtractor'
            )
        added = self._additions(condition, inject or {})
        if self._compiled is not None and not added and self._compiled.taps == set(names):
            found = self._compiled(lambda: self.run(x_t, t, condition))
            maps = {name: value for tap, value in found.items() for name in names[tap]}
            self.check_maps(maps, list(taps))
            return maps
        session = TapSession(self.network, names, added)
        with self._reading(session), self.uncompiled():
            self.run(x_t, t, condition)
        idle = [str(tap) for tap in added if tap not in session.injected]
        if idle:
            raise ValueError(
                f'inject: {idle} run after the last of the taps {list(taps)} or not at all, so that adding there '
                'would change nothing'
            )
        maps = {name: value for tap, value in session.captured.items() for name in names[tap]}
        self.check_maps(maps, list(taps))
        return maps

    def compile(self, taps: Sequence[str], **how: Any) -> None:  # type: ignore[override]
        """Compile looks that read ``taps``, all of them; see :class:`CompiledTaps`. Other looks run as before.

        Raises:
            ValueError: what cannot be compiled.
        """
        moving = [self.tap(name) for name in taps if not self.is_static(name)]
        self._compiled = CompiledTaps(self.network, moving, **how)

    def uncompiled(self) -> contextlib.AbstractContextManager[None]:
        """While this context is open looks are not compiled."""
        return contextlib.nullcontext() if self._compiled is None else self._compiled.aside()

    def _additions(
        self, condition: Condition | None, inject: Mapping[str, Tensor]
    ) -> dict[Tap, Tensor]:
        """What is added where: the injections, and a condition's bias on the time embedding."""
        added = {self.tap(name): value for name, value in inject.items()}
        wrong = [str(tap) for tap in added if tap.side in PROBS]
        if wrong:
            raise ValueError(
                f'inject: nothing can be added to probabilities ({wrong}); name a side of a module'
            )
        if condition is not None:
            self.check_condition(condition)
            if condition.time_bias is not None:
                tap = self.tap('time_embedding')
                added[tap] = (
                    condition.time_bias + added[tap] if tap in added else condition.time_bias
                )
        return added

    def check_condition(self, condition: Condition) -> None:
        """ValueError for what this family cannot be told."""
        given = [
            field.name for field in fields(condition) if getattr(condition, field.name) is not None
        ]
        unknown = sorted(set(given) - set(self.told))
        if unknown:
            raise ValueError(
                f'{type(self).__name__} cannot be told {unknown}: of a condition it takes {list(self.told)}. Leave the rest out'
            )

    @contextlib.contextmanager
    def _reading(self, session: TapSession) -> Iterator[None]:
        """Hooks of ``session`` while this context is open; checkpointed units know of it."""
        previous, self._session = self._session, session
        try:
            with session():
                yield
        finally:
            self._session = previous

    @staticmethod
    def check_maps(maps: Mapping[str, Tensor], taps: Sequence[str]) -> None:
        """ValueError for taps that were not reached or do not give maps (B, C, h, w)."""
        missing = [name for name in taps if name not in maps]
        if missing:
            raise ValueError(
                f'taps {missing} were not reached: their modules do not run in a forward pass'
            )
        wrong = {name: tuple(value.shape) for name, value in maps.items() if value.dim() != 4}
        if wrong:
            raise ValueError(
                f'taps {wrong} do not give maps (B, C, h, w). tools/list_taps.py prints the taps that do'
            )

    def checkpoint(self, module: nn.Module, *args: Any) -> Any:
        """Activation checkpointing as diffusers calls it, which knows about taps and injections."""
        session = self._session
        if session is None:
            return torch.utils.checkpoint.checkpoint(module.__call__, *args, use_reentrant=False)
        return session.checkpointed(module, *args)

    def set_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        network: Any = self.network
        if not any(hasattr(module, 'gradient_checkpointing') for module in network.modules()):
            return  # cut behind conv_in: diffusers would refuse
        if enabled:
            network.enable_gradient_checkpointing(self.checkpoint)
        else:
            network.disable_gradient_checkpointing()

    # ---- what the taps are --------------------------------------------------------------------------------

    def trace(self, image_size: tuple[int, int]) -> list[TraceEvent]:
        """Every module side that a forward passes at an image size (H, W), found without arithmetic."""
        self.check_image_size(image_size)
        if image_size not in self._trace_cache:
            with torch.no_grad(), self.uncompiled():
                self._trace_cache[image_size] = trace(
                    self.network, lambda: run_on_meta(self, image_size)
                )
        return self._trace_cache[image_size]

    def run_all(self, image: Tensor, t: Tensor) -> None:
        """Every part of the network once, in the order in which :class:`FeatureExtractor` runs them."""
        self.run(self.encode(image), t, None)

    def tap_info(self, image_size: tuple[int, int]) -> dict[str, TapInfo]:
        """Channels, stride and order of every tap whose map covers the image (H, W); in the order of execution."""
        infos: dict[str, TapInfo] = {}
        for order, event in enumerate(self.trace(image_size)):
            name = str(event.tap)
            if event.shape is None or len(event.shape) != 4 or name in infos:
                continue
            _, channels, *size = event.shape
            stride, rest = divmod(image_size[0], size[0])
            if rest or image_size[1] != stride * size[1]:
                continue  # padded by a pixel, as the input of a convolution that halves the map
            infos[name] = TapInfo(name, channels, stride, order)
        return infos

    def check_image_size(self, image_size: tuple[int, int]) -> None:
        height, width = image_size
        if height % self.divisor or width % self.divisor or min(image_size) < 1:
            up = tuple(-(-side // self.divisor) * self.divisor for side in image_size)
            raise ValueError(
                f'image size {tuple(image_size)} does not fit: both sides must be multiples of {self.divisor}. '
                f'Pad to {up} (DiffusionBackbone does)'
            )

    # ---- cutting ------------------------------------------------------------------------------------------

    def cut(self, taps: Iterable[str]) -> None:
        """Shorten the network behind the last of ``taps``. Their activations stay what they were."""
        wanted = {self.tap(name) for name in taps}
        last = self._last(wanted)
        self.note_infos(wanted)
        self.shorten(last)
        self._trace_cache.clear()

    def note_infos(self, taps: set[Tap]) -> None:
        """Keep what is known of taps for which the network is about to be cut: channels and strides stay what they are."""
        found = self.tap_info((self.divisor * 2, self.divisor * 2))
        self.known_infos = {str(tap): found[str(tap)] for tap in taps if str(tap) in found}

    def _last(self, taps: set[Tap]) -> Tap:
        size = (self.divisor * 2, self.divisor * 2)
        order: dict[Tap, int] = {}
        for number, event in enumerate(self.trace(size)):
            order.setdefault(event.tap, number)
        missing = [str(tap) for tap in taps if tap not in order]
        if missing:
            raise ValueError(
                f'taps {missing} are not reached: their modules do not run in a forward pass'
            )
        return max(taps, key=order.__getitem__)

    def unused_parameters(self, taps: Iterable[str]) -> list[str]:
        """Names (in :attr:`network`) of the parameters that the activations at ``taps`` do not depend on."""
        wanted = {self.tap(name) for name in taps}
        parameters = dict(self.network.named_parameters())
        before = {name: p.requires_grad for name, p in parameters.items()}
        session = TapSession(self.network, wanted, stop=False)
        try:
            self.network.requires_grad_(True)
            with torch.enable_grad(), session(), self.uncompiled():
                run_on_fakes(self, (self.divisor * 2, self.divisor * 2))
        finally:
            for name, p in parameters.items():
                p.requires_grad_(before[name])
        used = leaves(session.captured.values())
        return [name for name, p in parameters.items() if id(p) not in used]
