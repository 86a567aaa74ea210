"""DenoisingPretrainer: trains a diffusion network on images (DDPM, Ho et al. 2020; EDM, Karras et al. 2022)."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.objectives import Objective
from mmdiffrep.registry import MODELS

from .inputs import UNIT_RANGE


@MODELS.register_module()
class DenoisingPretrainer(BaseModel):
    """x_t = alpha x_0 + sigma eps; the network's output is compared with its target by mean squared error.

    Args:
        network: ``dict(_class_name='UNet2DModel' | 'UNet2DConditionModel' | 'DiTTransformer2DModel' | 'ADM', …)`` and its
            arguments, see :class:`GenerativeModel`; or ``dict(pretrained=…)`` to go on from saved weights, with all that belongs to them.
        schedule: a diffusers scheduler config, whose ``prediction_type`` says what the network gives, or
            ``dict(_class_name='EDMSchedule', …)``.
        autoencoder, text_encoder, num_classes: see :class:`GenerativeModel`.
        drop_condition: share of the images whose class or text is withheld, for classifier-free guidance.
        loss_on, timestep_power, min_snr_gamma: see :class:`Objective`.
        channels_last, compile: speed on an accelerator; neither changes what is trained.
        data_preprocessor: must bring images to [-1, 1]; the default does, from mmcv's BGR.
        seed: of the network's random weights.
    """

    def __init__(
        self,
        network: Mapping[str, Any],
        schedule: Mapping[str, Any] | None = None,
        autoencoder: str | None = None,
        text_encoder: str | None = None,
        num_classes: int | None = None,
        drop_condition: float = 0.1,
        loss_on: str | None = None,
        timestep_power: float = 1.0,
        min_snr_gamma: float | None = None,
        channels_last: bool = False,
        compile: bool = False,
        data_preprocessor: Mapping[str, Any] | None = None,
        seed: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or UNIT_RANGE, init_cfg)
        if not 0 <= drop_condition <= 1:
            raise ValueError(f'drop_condition={drop_condition!r} does not fit; allowed: a share from 0 to 1')
        if 'pretrained' in network:
            given = dict(schedule=schedule, autoencoder=autoencoder, text_encoder=text_encoder, num_classes=num_classes)
            given |= {key: value for key, value in network.items() if key != 'pretrained'}
            if any(value is not None for value in given.values()):
                raise ValueError(
                    f'network=dict(pretrained={network["pretrained"]!r}) brings its own parts: leave '
                    f'{sorted(key for key, value in given.items() if value is not None)} out'
                )
            self.model = GenerativeModel.load(network['pretrained'])
        else:
            self.model = GenerativeModel(network, schedule, autoencoder, text_encoder, num_classes, seed)
        if self.model.learns_variance:
            channels = self.model.network.config.in_channels
            raise ValueError(
                f'the network has {channels} channels in and {2 * channels} out: a learned variance is not trained. Set '
                f'out_channels={channels}'
            )
        self.model.network.requires_grad_(True).train()
        self.objective = Objective(self.model.schedule, loss_on, timestep_power, min_snr_gamma)
        self.drop_condition = drop_condition
        if channels_last:
            self.model.network.to(memory_format=torch.channels_last)
        self.compile = compile
        # made at the first step, so that an EMA copy does not hold it; in a list, so that no checkpoint does
        self._compiled: list[Any] = []

    def forward(
        self,
        inputs: Tensor,
        label: Tensor | None = None,
        caption: Sequence[str] | None = None,
        data_samples: Any = None,
        mode: str = 'tensor',
    ) -> dict[str, Tensor] | list[dict[str, Tensor]] | Tensor:
        """Images (B, 3, H, W) in [-1, 1], with labels (B,) or captions for a network that is told them.

        ``'loss'``: dict of the mean loss. ``'predict'``: one dict(t, loss) an image, whose timestep and noise come from a hash of
        the image: the same in each validation and in any batch. ``'tensor'``: the network's output at random timesteps.
        """
        if mode == 'predict':
            return self._validate(inputs, label, caption)
        x0 = self.model.encode(inputs, sample=True)
        condition = self._condition(len(inputs), label, caption, drop=True)
        t, noise = self._draw(inputs, x0)
        x_t = self.model.schedule.add_noise(x0, noise, t)
        output = self._network(x_t, t, condition)
        if mode == 'tensor':
            return output
        return dict(loss=self.objective.losses(output, x0, noise, x_t, t).mean())

    def _draw(self, images: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Timesteps (B,) and noise like x0, for training."""
        t = self.objective.draw_timesteps(len(images)).to(images.device)
        return t, torch.randn_like(x0)

    def _hashed(self, images: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """The same from a hash of each image's 8-bit pixels."""
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().cpu()
        seeds = [zlib.crc32(image.numpy().tobytes()) for image in pixels]
        # float32 would round the largest of them up to 1
        t = self.objective.timesteps_at(torch.tensor(seeds, dtype=torch.float64) / 2**32).to(images.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return t, torch.stack([torch.randn(x0.shape[1:], generator=g) for g in generators]).to(x0)

    def _condition(
        self, batch: int, label: Tensor | None, caption: Sequence[str] | None, drop: bool
    ) -> Condition | None:
        """Once for the whole network: a DiT's blocks drop nothing on their own."""
        model = self.model
        label = label if model.takes_classes else None
        caption = caption if model.takes_text else None
        if model.num_classes is not None and label is None:
            raise ValueError(
                'the network is trained with classes and the data has no "label": set labels=True in the data set, or leave num_classes out'
            )
        if model.takes_text and caption is None:
            raise ValueError('the network is trained with texts and the data has no "caption": use a data set of captioned images')
        told = label is not None or caption is not None
        dropped = torch.rand(batch) < self.drop_condition if drop and told else None
        return model.condition(batch, label, caption, dropped)

    def _network(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        if self.compile and not self._compiled and x_t.is_cuda and self.training:
            self._compiled.append(torch.compile(self.model.network))
        network = self._compiled[0] if self.training and self._compiled else self.model.network
        return self.model.call(network, x_t, t, condition)

    @torch.no_grad()
    def _validate(
        self, inputs: Tensor, label: Tensor | None, caption: Sequence[str] | None
    ) -> list[dict[str, Tensor]]:
        x0 = self.model.encode(inputs)
        t, noise = self._hashed(inputs, x0)
        x_t = self.model.schedule.add_noise(x0, noise, t)
        output = self._network(x_t, t, self._condition(len(inputs), label, caption, drop=False))
        losses = self.objective.losses(output, x0, noise, x_t, t)
        return [dict(t=a, loss=b) for a, b in zip(t.cpu(), losses.cpu())]

    # ---- what SaveDiffusersHook asks ----------------------------------------------------------------------

    def save_diffusers(self, folder: Path, dtype: torch.dtype) -> None:
        self.model.save(folder, dtype)

    def card(self) -> list[str]:
        """Lines of the model card that say what the network is."""
        model = self.model
        parameters = sum(p.numel() for p in model.network.parameters()) / 1e6
        told = 'texts' if model.takes_text else f'{model.num_classes} classes' if model.num_classes else 'nothing'
        space = 'pixels' if model.frozen.vae is None else 'the latents of its autoencoder'
        return [
            f'- network: {model.kind}, {parameters:.2f}M parameters, in {space}, told {told}',
            f'- objective: {model.schedule.prediction}, timestep_power {self.objective.timestep_power}, min-SNR gamma '
            f'{self.objective.min_snr_gamma}',
        ]
