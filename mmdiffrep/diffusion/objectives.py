"""What a diffusion network is trained on: which timesteps, which error, with which weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedules import PREDICTIONS, DiscreteSchedule, NoiseSchedule


class Objective:
    """The error of a network's output, by a schedule.

    DDPM (Ho et al. 2020, algorithm 1): mean squared error of what the network predicts, or of the same prediction turned into another
    quantity. EDM (Karras et al. 2022, eq. 8): lambda(sigma) (D - x_0)², lambda = 1 / c_out², which is the plain error of the raw output F.

    Args:
        loss_on: the space in which the error is measured: ``'epsilon'``, ``'sample'`` (x_0), ``'v_prediction'``, or None: the
            network's own. EDM knows only its own.
        timestep_power: t = T u^power with u uniform in [0, 1): 1 draws all timesteps alike, 2 draws low noise more often (half of
            all below T / 4), where textures and shapes are still to be seen. EDM draws sigma by its schedule's p_mean, p_std.
        min_snr_gamma: weigh each error as min(SNR, gamma) would weigh it on x_0 (Hang et al., ICCV 2023, eq. 7–9; gamma = 5 there),
            SNR = alpha² / sigma². DDPM only.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        loss_on: str | None = None,
        timestep_power: float = 1.0,
        min_snr_gamma: float | None = None,
    ) -> None:
        if loss_on not in (None, *PREDICTIONS):
            raise ValueError(f'loss_on={loss_on!r} is unknown; allowed: {PREDICTIONS} or None')
        if not timestep_power > 0:
            raise ValueError(f'timestep_power={timestep_power!r} does not fit; allowed: above 0 (1 is uniform)')
        if min_snr_gamma is not None and not min_snr_gamma > 0:
            raise ValueError(f'min_snr_gamma={min_snr_gamma!r} does not fit; allowed: above 0, or None for no weight')
        discrete = isinstance(schedule, DiscreteSchedule)
        if not discrete and (loss_on is not None or timestep_power != 1 or min_snr_gamma is not None):
            raise ValueError(
                f'loss_on={loss_on!r}, timestep_power={timestep_power}, min_snr_gamma={min_snr_gamma} belong to DDPMs; EDM has a weight '
                'and a distribution of its own. Leave them out, and set p_mean, p_std in the schedule'
            )
        self.schedule = schedule
        self.loss_on = loss_on or (schedule.prediction if discrete else None)
        self.timestep_power, self.min_snr_gamma = timestep_power, min_snr_gamma

    def draw_timesteps(self, batch: int) -> Tensor:
        """Timesteps (B,), by torch's generator on the CPU."""
        if self.timestep_power == 1:
            return self.schedule.sample_timesteps(batch)
        steps = len(self.schedule)  # type: ignore[arg-type]
        return (torch.rand(batch) ** self.timestep_power * steps).long().clamp(max=steps - 1)

    def timesteps_at(self, u: Tensor) -> Tensor:
        """Timesteps (B,) at quantiles u (B,) in [0, 1) of those that are trained: all alike, or EDM's log-normal."""
        if isinstance(self.schedule, DiscreteSchedule):
            return (u.double() * len(self.schedule)).long()
        quantile = torch.special.ndtri(u.double().clamp(1e-3, 1 - 1e-3))
        sigma = (self.schedule.p_mean + self.schedule.p_std * quantile).exp()  # type: ignore[attr-defined]
        return sigma.float().clamp(self.schedule.sigma_min, self.schedule.sigma_max)  # type: ignore[attr-defined]

    def losses(self, output: Tensor, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Weighted mean squared errors (B,) of the network's output (B, C, H, W), in float32."""
        output, x0, noise = output.float(), x0.float(), noise.float()
        target = self.schedule.target(x0, noise, t)
        if self.loss_on is not None and self.loss_on != self.schedule.prediction:
            output = convert_prediction(self.schedule, output, x_t, t, self.loss_on)
            target = convert_prediction(self.schedule, target, x_t, t, self.loss_on)
        losses = F.mse_loss(output, target, reduction='none').flatten(1).mean(1)
        return losses if self.min_snr_gamma is None else losses * self.weights(t).to(losses)

    def weights(self, t: Tensor) -> Tensor:
        """Min-SNR weights (B,) for an error in the space of ``loss_on``."""
        assert self.min_snr_gamma is not None
        alpha, sigma = self.schedule.alpha_sigma(t)
        snr = (alpha / sigma) ** 2
        if self.loss_on == 'epsilon':  # |eps error|² = SNR |x_0 error|²; written so that an SNR of 0 is allowed
            return (self.min_snr_gamma / snr).clamp(max=1)
        least = snr.clamp(max=self.min_snr_gamma)
        return least / (snr + 1) if self.loss_on == 'v_prediction' else least  # |v error|² = (SNR + 1) |x_0 error|²


def convert_prediction(schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Tensor, to: str) -> Tensor:
    """A network's output in the schedule's own prediction, as epsilon, x_0 or v of the same x_t."""
    x0 = schedule.to_x0(output, x_t, t)
    if to == 'sample':
        return x0
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in schedule.alpha_sigma(t))
    noise = (x_t - alpha * x0) / sigma
    return noise if to == 'epsilon' else alpha * noise - sigma * x0
