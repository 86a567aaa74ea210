"""From an image to maps: encode once, noise it, look at it, average the draws, cover the image. Toolkit-free."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .budget import GIB, peak_bytes, rows_within
from .condition import Condition, Latent
from .denoiser import Denoiser
from .noise import LATENT_STREAM, NoisePolicy, image_key
from .taps import PROBS, VARYING, TapInfo
from .tracing import is_abstract

LOOKS = 8


class FeatureExtractor:
    """Reads a denoiser's taps for images in [-1, 1].

    Args:
        denoiser: where to look.
        taps: tap strings or paper aliases, each place once.
        timesteps: one or several, in the schedule's units.
        noise: which noise; its draws are averaged.
        looks: so many noised images go into the network at once where an image has several timesteps or draws. Where memory runs out
            without gradients, a look is split, with a warning, and later ones too.
        memory: GiB that activations may take in looks without gradients, beside the weights. So many images and noised images go at
            once as fit, found from shapes alone (:func:`~mmdiffrep.diffusion.budget.peak_bytes`) once for each size; ``looks`` is then not used.

    The maps come t-major: every tap at the first timestep, then at the second. Taps of an autoencoder do not depend on the
    timestep; they are read once and stand among the first timestep's.

    Raises:
        ValueError: an unknown tap, the same place twice, a timestep outside the schedule.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        taps: Sequence[str],
        timesteps: float | Sequence[float] = 50,
        noise: NoisePolicy | None = None,
        looks: int = LOOKS,
        memory: float | None = None,
    ) -> None:
        if memory is not None and not (isinstance(memory, (int, float)) and memory > 0):
            raise ValueError(f'memory={memory!r}: give GiB, more than 0, or None')
        if not isinstance(looks, int) or looks < 1:
            raise ValueError(f'looks={looks!r}: give a whole number of at least 1')
        self.denoiser = denoiser
        self.looks, self.memory = looks, memory
        self._fits: dict[Any, int] = {}  # what and its size -> how many at once within the budget
        self._times: dict[Any, Tensor] = {}
        self.most: int | None = None  # noised images at once, where more did not fit
        self.most_images: int | None = None  # images in the autoencoder at once, likewise
        self.noise = noise or NoisePolicy()
        self.taps = _distinct(denoiser, listed(taps))
        self.timesteps = _checked(denoiser, timesteps)
        self.static = [name for name in self.taps if denoiser.is_static(name)]
        self.moving = [name for name in self.taps if name not in self.static]
        if not self.moving:
            self.timesteps = self.timesteps[:1]
        # (timestep, tap) of each map
        self.order = [
            (t, name)
            for k, t in enumerate(self.timesteps)
            for name in (self.moving if k else self.taps)
        ]

    def infos(self) -> list[TapInfo]:
        """Channels and stride of each map that is given; channels are -1 where they depend on the size of the image.

        Raises:
            ValueError: a tap gives no map.
        """
        step = self.denoiser.divisor
        side = -(-max(64, step) // step) * step
        places = {name: self.denoiser.tap(name) for name in self.taps}
        found = self.denoiser.known_infos
        # how many words there are, and so a probability's channels, may have changed since the network was cut
        if any(str(tap) not in found or tap.side in PROBS for tap in places.values()):
            found = self.denoiser.tap_info((side, side))
        missing = [name for name, tap in places.items() if str(tap) not in found]
        if missing:
            raise ValueError(
                f'taps {missing} give no maps (B, C, h, w) that cover the image. tools/list_taps.py prints the taps that do'
            )
        # a self-attention's probabilities have a channel for each place of the image
        if any(tap.side in PROBS for tap in places.values()):
            wider = self.denoiser.tap_info((side, 2 * side))
            found = {
                name: info
                if info.channels == wider[name].channels
                else replace(info, channels=VARYING)
                for name, info in found.items()
            }
        return [found[str(places[name])] for _, name in self.order]

    def __call__(
        self, rgb: Tensor, condition: Condition | None = None, keys: list[int] | None = None
    ) -> list[Tensor]:
        """RGB (B, 3, H, W) in [-1, 1] -> the maps (B, C_k, h_k, w_k) of the padded image, in the order of :attr:`order`.

        ``keys`` seed ``per_image`` noise; by default they are hashes of the images.
        """
        if keys is None and self.noise.kind == 'per_image':
            keys = [image_key(x) for x in rgb]
        most = self._images_at_once(rgb)
        if most is not None and len(rgb) > most:
            return self._images_in_parts(rgb, condition, keys, most)
        padded = pad_to_multiple(rgb, self.denoiser.divisor)
        full = None  # what was said; the error itself would hold what is to be freed
        try:
            latent, static = self.denoiser.encode_tapped(padded, self.static, latent=bool(self.moving))
        except torch.OutOfMemoryError as error:
            full = str(error)
        if full is not None:
            self.most_images = self._fewer(padded, 'images', full)
            return self._images_in_parts(rgb, condition, keys, self.most_images)
        found = {(self.timesteps[0], name): value for name, value in static.items()}
        if self.moving:
            assert latent is not None
            if condition is None:
                condition = self.denoiser.default_condition(len(rgb))
            found.update(self._moving_maps(latent, keys, condition))
        return [found[key] for key in self.order]

    def look(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> dict[str, Tensor]:
        """One look at noised images: each moving tap's map."""
        return self.denoiser.features(x_t, t, condition, self.moving, check=False)

    def _moving_maps(
        self, latent: Latent, keys: list[int] | None, condition: Condition | None
    ) -> dict[tuple[float, str], Tensor]:
        """The moving taps' maps at every timestep, averaged over the draws of noise."""
        batch = latent.mean.shape[0]
        # timesteps and draws of a small batch fill a device as one large batch does; the autoencoder is not asked again
        parts = [(t, draw) for t in self.timesteps for draw in range(self.noise.draws)]
        most = self._looks_at_once(latent.mean, condition) if self.memory is not None else None
        together = max(1, min(len(parts), (most or self.looks) // batch))
        total: dict[tuple[float, str], Tensor] = {}
        for start in range(0, len(parts), together):
            chunk = parts[start : start + together]
            t = self._steps(tuple(step for step, _ in chunk for _ in range(batch)), latent.mean.device)
            x_t = torch.cat([self._noised(latent, step, draw, keys) for step, draw in chunk])
            told = condition if condition is None or len(chunk) == 1 else condition.repeated(len(chunk))
            maps = self._looked(x_t, t, told)
            for name in self.moving:
                for (step, _), m in zip(chunk, maps[name].split(batch)):
                    total[step, name] = total[step, name] + m if (step, name) in total else m
        draws = self.noise.draws
        return {key: x / draws for key, x in total.items()} if draws > 1 else total

    def _looked(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> dict[str, Tensor]:
        """:meth:`look`, in so many parts as memory needs where no gradient is wanted."""
        most = self._looks_at_once(x_t, condition)
        if most is not None and len(x_t) > most:
            return self._in_parts(x_t, t, condition, most)
        full = None  # what was said; the error itself would hold what is to be freed
        try:
            return self.look(x_t, t, condition)
        except torch.OutOfMemoryError as error:
            full = str(error)
        self.most = self._fewer(x_t, 'noised images', full)
        return self._in_parts(x_t, t, condition, self.most)

    def _images_at_once(self, rgb: Tensor) -> int | None:
        """How many images the autoencoder takes; None: all."""
        size = tuple(side + -side % self.denoiser.divisor for side in rgb.shape[-2:])

        def encode(rows: int) -> None:
            image = rgb.new_empty((rows, rgb.shape[1], *size))
            self.denoiser.encode_tapped(image, self.static, latent=bool(self.moving))

        return self._at_once('images', (*rgb.shape[1:2], *size), self.most_images, encode)

    def _looks_at_once(self, x_t: Tensor, condition: Condition | None) -> int | None:
        """How many noised images the network takes; None: all."""

        def look(rows: int) -> None:
            told = None if condition is None else condition.rows(slice(0, 1)).repeated(rows)
            if told is not None and told.tokens is not None and len(told.tokens) != rows:
                told.tokens = told.tokens.expand(rows, -1, -1)
            t = torch.full((rows,), self.timesteps[0], device=x_t.device)
            self.look(x_t.new_empty((rows, *x_t.shape[1:])), t, told)

        return self._at_once('noised images', tuple(x_t.shape[1:]), self.most, look)

    def _at_once(self, what: str, size: tuple[int, ...], most: int | None, run: Callable[[int], None]) -> int | None:
        """How many fit into the budget, and not more than what memory turned out to hold; None: no limit."""
        if torch.is_grad_enabled():  # all activations are kept: parts would save nothing
            return None
        if self.memory is None:
            return most
        if (what, size) not in self._fits:
            with self.denoiser.uncompiled():
                fit, one = rows_within(self.memory * GIB, lambda rows: peak_bytes(lambda: run(rows)))
            self._fits[what, size] = fit
            if one > self.memory * GIB:
                warnings.warn(
                    f'memory={self.memory:g} GiB: one of the {what} {size} needs about {one / GIB:.2g} GiB beside the weights, and is tried all the same. '
                    "dtype='bf16', smaller images or windows=dict(size=512) need less",
                    stacklevel=2,
                )
        fit = self._fits[what, size]
        return fit if most is None else min(fit, most)

    def _steps(self, times: tuple[float, ...], device: torch.device) -> Tensor:
        """Timesteps as a tensor, the same one each time: it is copied to an accelerator once, and the network knows it again."""
        found = self._times.get((times, device))
        if found is None:
            with torch.inference_mode(False):
                found = torch.tensor(times, device=device)
            if not is_abstract(found):
                if len(self._times) >= 16:  # other batch sizes and devices
                    self._times.clear()
                self._times[times, device] = found
        return found

    def _fewer(self, x: Tensor, what: str, told: str) -> int:
        """How many of them to try at once where all were too many, which is said; OutOfMemoryError with advice where there is no smaller number."""
        rows, size = len(x), tuple(x.shape[1:])
        if torch.is_grad_enabled():
            cure = 'a smaller batch, with_cp=True, or a frozen backbone without grad_through'
            raise torch.OutOfMemoryError(f'{rows} {what} {size} do not fit in a look with gradients: take {cure}. {told}')
        if rows == 1:
            cure = "dtype='bf16', smaller images, or windows=dict(size=512, batch=1)"
            raise torch.OutOfMemoryError(f'one of the {what} {size} does not fit beside the network: take {cure}. {told}')
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f'memory ran out with {rows} {what} {size}: at most {rows // 2} {what} at once from now on (the same maps, slower). '
            f'looks={rows // 2}, a smaller batch or windows=dict(batch={rows // 2}) says so from the beginning',
            stacklevel=2,
        )
        return rows // 2

    def _images_in_parts(
        self, rgb: Tensor, condition: Condition | None, keys: list[int] | None, most: int
    ) -> list[Tensor]:
        parts = []
        for start in range(0, len(rgb), most):
            rows = slice(start, start + most)
            told = None if condition is None else condition.rows(rows)
            parts.append(self(rgb[rows], told, None if keys is None else keys[rows]))
        return [torch.cat(maps) for maps in zip(*parts)]

    def _in_parts(self, x_t: Tensor, t: Tensor, condition: Condition | None, most: int) -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(x_t), most):
            rows = slice(start, start + most)
            told = None if condition is None else condition.rows(rows)
            for name, m in self._looked(x_t[rows], t[rows], told).items():
                found.setdefault(name, []).append(m)
        return {name: torch.cat(maps) for name, maps in found.items()}

    def _noised(self, latent: Latent, timestep: float, draw: int, keys: list[int] | None) -> Tensor:
        """x_t of the batch with one draw of the noise."""
        shape = tuple(latent.mean.shape)
        x0 = latent.mean
        if latent.std is not None:
            x0 = latent.draw(self.noise.draw(shape, draw + LATENT_STREAM, keys))  # type: ignore[arg-type]
        noise = self.noise.draw(shape, draw, keys)  # type: ignore[arg-type]
        if noise is None:
            return x0
        t = torch.full((shape[0],), timestep, device=x0.device)
        return self.denoiser.schedule.add_noise(x0, noise.to(x0), t)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until both sides of (B, C, H, W) are multiples."""
    bottom, right = (-image.shape[-2] % multiple, -image.shape[-1] % multiple)
    if not (bottom or right):
        return image
    return F.pad(image, (0, right, 0, bottom), mode='replicate')


def listed(taps: Sequence[str]) -> list[str]:
    """``taps`` as a list; ValueError for a single string or none."""
    if isinstance(taps, str) or not taps:
        raise ValueError(
            f"taps must be a list of at least one tap, got {taps!r}; e.g. ['up_blocks.1']"
        )
    return list(taps)


def _distinct(denoiser: Denoiser, taps: Sequence[str]) -> list[str]:
    """The taps as given; the same place twice is a mistake."""
    canonical = [denoiser.tap(name) for name in taps]
    if len(set(canonical)) < len(canonical):
        raise ValueError(
            f'taps {list(taps)} name the same place twice: {[str(tap) for tap in canonical]}'
        )
    return [str(name) for name in taps]


def _checked(denoiser: Denoiser, timesteps: float | Sequence[float]) -> list[float]:
    chosen = list(timesteps) if isinstance(timesteps, (list, tuple)) else [timesteps]
    if not chosen:
        raise ValueError('timesteps is empty: give at least one, e.g. timesteps=50')
    if len(set(chosen)) < len(chosen):
        raise ValueError(f'timesteps={chosen} holds one twice: give each once')
    for t in chosen:
        denoiser.schedule.check_timesteps(torch.full((1,), t))
    return chosen  # type: ignore[return-value]
