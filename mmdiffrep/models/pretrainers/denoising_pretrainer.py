"""DenoisingPretrainer: trains a diffusion network on unlabelled images (DDPM, Ho et al. 2020, algorithm 1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.diffusion.pixel_unet import DEFAULT_SCHEDULE, PixelUNet
from mmdiffrep.diffusion.schedules import PREDICTIONS, DiscreteSchedule, build_schedule
from mmdiffrep.registry import MODELS


@MODELS.register_module()
class DenoisingPretrainer(BaseModel):
    """x_t = alpha x_0 + sigma eps; the network's output is compared with its target by mean squared error.

    Args:
        unet: arguments of diffusers' ``UNet2DModel``, or ``dict(pretrained=…)`` to go on from saved weights.
        schedule: a diffusers scheduler config; its ``prediction_type`` says what the network gives.
        loss_on: the space in which the error is measured: ``'epsilon'``, ``'sample'`` (x_0), ``'v_prediction'``, or None: the
            network's own.
        channels_last, compile: speed on an accelerator; neither changes what is trained.
        data_preprocessor: must bring images to [-1, 1]; the default does, from mmcv's BGR.
    """

    def __init__(
        self,
        unet: Mapping[str, Any],
        schedule: Mapping[str, Any] | None = None,
        loss_on: str | None = None,
        channels_last: bool = False,
        compile: bool = False,
        data_preprocessor: Mapping[str, Any] | None = None,
        seed: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        data_preprocessor = data_preprocessor or dict(
            type='ImgDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True
        )
        super().__init__(data_preprocessor, init_cfg)
        if loss_on not in (None, *PREDICTIONS):
            raise ValueError(f'loss_on={loss_on!r} is unknown; allowed: {PREDICTIONS} or None')
        unet = dict(unet)
        if 'pretrained' in unet:
            denoiser = PixelUNet(**unet)
            self.schedule = denoiser.schedule if schedule is None else build_schedule(schedule)
        else:
            self.schedule = build_schedule(schedule or DEFAULT_SCHEDULE)
            denoiser = PixelUNet(config=unet, random_seed=seed)
        if not isinstance(self.schedule, DiscreteSchedule):
            raise ValueError(
                f'schedule {schedule} is not discrete: DenoisingPretrainer trains DDPMs. Give a diffusers '
                "scheduler config, e.g. dict(beta_schedule='linear', prediction_type='epsilon')"
            )
        channels = denoiser.unet.config.in_channels, denoiser.unet.config.out_channels
        if channels != (3, 3):
            raise ValueError(
                f'the network has {channels[0]} channels in and {channels[1]} out; allowed: 3 and 3 (a learned variance '
                'is not trained). Set in_channels=3, out_channels=3'
            )
        self.unet = denoiser.unet.requires_grad_(True).train()
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.loss_on = loss_on
        self.compile = compile
        self._compiled: Any = None  # made at the first step, so that an EMA copy does not hold it

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[dict[str, Tensor]] | Tensor:
        """Images (B, 3, H, W) in [-1, 1].

        ``'loss'``: dict of the mean loss. ``'predict'``: one dict(t, loss) an image, at evenly spread timesteps with noise from
        a fixed seed. ``'tensor'``: the network's output at random timesteps.
        """
        if mode == 'predict':
            return self._validate(inputs)
        t = self.schedule.sample_timesteps(len(inputs)).to(inputs.device)
        noise = torch.randn_like(inputs)
        x_t = self.schedule.add_noise(inputs, noise, t)
        output = self._network(x_t, t)
        if mode == 'tensor':
            return output
        return dict(loss=self.losses(output, inputs, noise, x_t, t).mean())

    def losses(self, output: Tensor, x0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean squared error (B,) in the space of ``loss_on``."""
        output = output.float()
        if self.loss_on in (None, self.schedule.prediction):
            target = self.schedule.target(x0, noise, t)
        else:
            output = convert_prediction(self.schedule, output, x_t, t, self.loss_on)
            target = convert_prediction(
                self.schedule, self.schedule.target(x0, noise, t), x_t, t, self.loss_on
            )
        return F.mse_loss(output, target, reduction='none').flatten(1).mean(1)

    def _network(self, x_t: Tensor, t: Tensor) -> Tensor:
        if self.compile and self._compiled is None and x_t.is_cuda and self.training:
            self._compiled = torch.compile(self.unet)
        network = self._compiled if self.training and self._compiled is not None else self.unet
        x = self.schedule.network_input(x_t, t)
        return network(x, self.schedule.network_time(t), return_dict=False)[0]

    @torch.no_grad()
    def _validate(self, inputs: Tensor) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        steps = len(self.schedule)
        t = ((torch.arange(len(inputs)) * 0.6180339887) % 1 * steps).long().to(inputs.device)
        noise = torch.randn(inputs.shape, generator=generator).to(inputs)
        x_t = self.schedule.add_noise(inputs, noise, t)
        losses = self.losses(self._network(x_t, t), inputs, noise, x_t, t)
        return [dict(t=a, loss=b) for a, b in zip(t.cpu(), losses.cpu())]


def convert_prediction(schedule: Any, output: Tensor, x_t: Tensor, t: Tensor, to: str) -> Tensor:
    """A network's output in the schedule's own prediction, as epsilon, x_0 or v of the same x_t."""
    x0 = schedule.to_x0(output, x_t, t)
    if to == 'sample':
        return x0
    alpha, sigma = (value.view(-1, 1, 1, 1) for value in schedule.alpha_sigma(t))
    noise = (x_t - alpha * x0) / sigma
    return noise if to == 'epsilon' else alpha * noise - sigma * x0
