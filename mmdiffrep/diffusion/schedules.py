"""Noise schedules: x_t = alpha x0 + sigma eps, the network's input and time, and what it predicts.

Discrete variance-preserving schedules (DDPM, Ho et al. 2020; every diffusers scheduler config) and EDM (Karras et al. 2022,
table 1) stand behind one interface. ``t`` is a tensor (B,) in the schedule's own units: a timestep 0 … T-1, or EDM's sigma.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

PREDICTIONS = ('epsilon', 'sample', 'v_prediction')
# diffusers schedulers whose training noise is that of DDPMScheduler with the same betas
VP_SCHEDULERS = frozenset(
    ['DDIMInverse', 'DDIMParallel', 'DDIM', 'DDPMParallel', 'DDPM', 'DEISMultistep', 'DPMSolverMultistep']
    + ['DPMSolverMultistepInverse', 'DPMSolverSDE', 'DPMSolverSinglestep', 'EulerAncestralDiscrete']
    + ['EulerDiscrete', 'HeunDiscrete', 'KDPM2AncestralDiscrete', 'KDPM2Discrete', 'LCM', 'LMSDiscrete']
    + ['PNDM', 'RePaint', 'SASolver', 'TCD', 'UnCLIP', 'UniPCMultistep']
)


def _column(value: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), in the dtype of ``like`` (float32 for low precision: it is multiplied before rounding)."""
    return value.to(like.device).view(-1, *[1] * (like.dim() - 1))


class NoiseSchedule:
    """The interface; ``prediction`` says what the network's output is."""

    prediction: str

    def check_timesteps(self, t: Tensor) -> None:
        """ValueError for a timestep that the schedule does not have."""
        raise TypeError(f'{type(self).__name__} must define check_timesteps')

    def example_timesteps(self, batch: int) -> Tensor:
        """Any valid timesteps (B,)."""
        raise TypeError(f'{type(self).__name__} must define example_timesteps')

    def sample_timesteps(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Timesteps (B,) as they are drawn in training, on the CPU."""
        raise TypeError(f'{type(self).__name__} must define sample_timesteps')

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma (B,), float32."""
        raise TypeError(f'{type(self).__name__} must define alpha_sigma')

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        raise TypeError(f'{type(self).__name__} must define network_input')

    def network_time(self, t: Tensor) -> Tensor:
        """The time the network was trained with, (B,)."""
        raise TypeError(f'{type(self).__name__} must define network_time')

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is trained to give for x_t = alpha x0 + sigma noise."""
        raise TypeError(f'{type(self).__name__} must define target')

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's output as an estimate of x0."""
        raise TypeError(f'{type(self).__name__} must define to_x0')

    def to_config(self) -> dict[str, Any]:
        raise TypeError(f'{type(self).__name__} must define to_config')

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps, (B, C, H, W)."""
        alpha, sigma = self.alpha_sigma(t)
        return (_column(alpha, x0) * x0 + _column(sigma, x0) * noise).to(x0.dtype)


class DiscreteSchedule(NoiseSchedule):
    """Variance-preserving, T timesteps counted from 0: alpha_t² = prod(1 - beta), sigma_t² = 1 - alpha_t²."""

    def __init__(
        self, alphas_cumprod: Tensor, prediction: str, config: Mapping[str, Any] | None = None
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f'prediction_type {prediction!r} is unknown; allowed: {PREDICTIONS}')
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        self._copies: dict[torch.device, Tensor] = {}
        self.prediction = prediction
        self._config = dict(config or {})

    @classmethod
    def from_diffusers(cls, config: Any) -> DiscreteSchedule:
        """From a diffusers scheduler, or its config: the betas are exactly those that ``DDPMScheduler`` makes of it."""
        from diffusers import DDPMScheduler

        config = dict(getattr(config, 'config', config))
        try:
            scheduler = DDPMScheduler.from_config(
                # '_use_default_values' would swap a scheduler's own default betas for DDPM's
                {key: value for key, value in config.items() if not key.startswith('_')}
            )
        except NotImplementedError as error:
            raise ValueError(
                f"beta_schedule={config.get('beta_schedule')!r} is unknown; allowed: 'linear', 'scaled_linear', "
                "'squaredcos_cap_v2', 'sigmoid', or trained_betas=[…]"
            ) from error
        stored = {'_class_name': 'DDPMScheduler'} | {
            key: value for key, value in scheduler.config.items() if not key.startswith('_')
        }
        return cls(scheduler.alphas_cumprod, scheduler.config.prediction_type, stored)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def check_timesteps(self, t: Tensor) -> None:
        value = t.detach().cpu()  # one wait for an accelerator, not three
        whole = bool((value == value.round()).all())
        if not whole or bool((value < 0).any()) or bool((value >= len(self)).any()):
            raise ValueError(
                f'timesteps {sorted(set(value.flatten().tolist()))} are outside the schedule; allowed: whole numbers '
                f'from 0 to {len(self) - 1}'
            )

    def example_timesteps(self, batch: int) -> Tensor:
        return torch.zeros(batch, dtype=torch.long)

    def sample_timesteps(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(len(self), (batch,), generator=generator)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        product = self._on(t.device)[t.long()]
        return product.sqrt(), (1 - product).sqrt()

    def _on(self, device: torch.device) -> Tensor:
        """The table on a device, copied there once."""
        if device not in self._copies:
            self._copies[device] = self.alphas_cumprod.to(device)
        return self._copies[device]

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def network_time(self, t: Tensor) -> Tensor:
        # a sampler may ask between two timesteps (Euler with timestep_spacing='linspace')
        return t.float() if t.is_floating_point() else t.long()

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        if self.prediction == 'epsilon':
            return noise
        if self.prediction == 'sample':
            return x0
        alpha, sigma = self.alpha_sigma(t)
        return _column(alpha, x0) * noise - _column(sigma, x0) * x0  # v, Salimans and Ho 2022

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (_column(value, x_t) for value in self.alpha_sigma(t))
        if self.prediction == 'sample':
            return output
        if self.prediction == 'epsilon':
            return (x_t - sigma * output) / alpha
        return alpha * x_t - sigma * output

    def to_config(self) -> dict[str, Any]:
        return dict(self._config)


class EDMSchedule(NoiseSchedule):
    """EDM: t is sigma itself, alpha is 1 (Karras et al., NeurIPS 2022, https://arxiv.org/abs/2206.00364, table 1)."""

    prediction = 'edm'

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,  # standard deviation of the images in [-1, 1]
        p_mean: float = -1.2,  # of ln sigma in training
        p_std: float = 1.2,
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f'0 < sigma_min < sigma_max is needed, got {sigma_min} and {sigma_max}')
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data
        self.p_mean, self.p_std = p_mean, p_std

    def check_timesteps(self, t: Tensor) -> None:
        value = t.detach().float()
        inside = (value >= self.sigma_min) & (value <= self.sigma_max)  # False for nan
        if not bool(inside.all()):
            raise ValueError(
                f'sigmas {sorted(set(value.flatten().tolist()))} are outside the schedule; allowed: '
                f'{self.sigma_min} to {self.sigma_max} (for EDM, a timestep is the noise level sigma)'
            )

    def example_timesteps(self, batch: int) -> Tensor:
        return torch.full((batch,), self.sigma_data)

    def sample_timesteps(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        sigma = (self.p_mean + self.p_std * torch.randn(batch, generator=generator)).exp()
        return sigma.clamp(self.sigma_min, self.sigma_max)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t, dtype=torch.float32), t.float()

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, c_noise (B,): D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)."""
        sigma = sigma.float()
        sigma_data = self.sigma_data
        c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
        c_out = sigma * sigma_data / (sigma**2 + sigma_data**2).sqrt()
        c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip, c_out, c_in, c_noise

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return (_column(self.preconditioning(t)[2], x_t) * x_t).to(x_t.dtype)

    def network_time(self, t: Tensor) -> Tensor:
        return self.preconditioning(t)[3]

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        c_skip, c_out, _, _ = (_column(value, x0) for value in self.preconditioning(t))
        return (x0 - c_skip * self.add_noise(x0, noise, t)) / c_out

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        c_skip, c_out, _, _ = (_column(value, x_t) for value in self.preconditioning(t))
        return c_skip * x_t + c_out * output

    def to_config(self) -> dict[str, Any]:
        return dict(
            _class_name='EDMSchedule', sigma_min=self.sigma_min, sigma_max=self.sigma_max,
            sigma_data=self.sigma_data, p_mean=self.p_mean, p_std=self.p_std,
        )  # fmt: skip


def build_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """A schedule from a diffusers ``scheduler_config.json``, or from ``{'_class_name': 'EDMSchedule', …}``."""
    kind = config.get('_class_name', 'DDPMScheduler')
    if kind == 'EDMSchedule':
        return EDMSchedule(**{k: v for k, v in config.items() if not k.startswith('_')})
    if kind.removesuffix('Scheduler') not in VP_SCHEDULERS:
        raise ValueError(
            f'scheduler {kind} is not known to be variance-preserving; supported: discrete VP schedulers (DDPM, DDIM, PNDM, Euler, …) '
            "and dict(_class_name='EDMSchedule', …)"
        )
    return DiscreteSchedule.from_diffusers(config)
