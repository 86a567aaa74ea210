"""What a network is told besides x_t, and x0 as it sees an image."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor


@dataclass
class Condition:
    """What the network is told besides x_t. Unset fields take the family's default."""

    class_ids: Tensor | None = None  # (B,) long
    tokens: Tensor | None = None  # (B or 1, L, D) embedded text
    time_bias: Tensor | None = None  # (B or 1, D) added to the time embedding

    def repeated(self, times: int) -> Condition:
        """The same for a batch that is repeated as a whole."""
        told = {}
        for field in fields(self):
            value = getattr(self, field.name)
            # what is said once to all images stays so; class ids are one an image
            if value is not None and (len(value) > 1 or field.name == 'class_ids'):
                value = value.repeat(times, *[1] * (value.dim() - 1))
            told[field.name] = value
        return Condition(**told)

    def rows(self, part: slice) -> Condition:
        """What is said to some of the images."""
        told = {}
        for field in fields(self):
            value = getattr(self, field.name)
            told[field.name] = value[part] if value is not None and (len(value) > 1 or field.name == 'class_ids') else value
        return Condition(**told)


@dataclass
class Latent:
    """x0 as the network sees an image: exact, or the mean and deviation of an autoencoder's posterior."""

    mean: Tensor  # (B, C, H/s, W/s)
    std: Tensor | None = None  # None: x0 is the mean

    def draw(self, noise: Tensor | None = None) -> Tensor:
        """x0; ``noise`` is standard normal and shaped like the mean."""
        if self.std is None:
            return self.mean
        if noise is None:
            raise ValueError(
                "latent='sample' needs noise that draws it from the posterior, and there is none: take latent='mean', or a "
                "noise kind other than 'none'"
            )
        return self.mean + self.std * noise.to(self.mean)
