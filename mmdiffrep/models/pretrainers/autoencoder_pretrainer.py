"""AutoencoderPretrainer: trains the autoencoder in whose latents a diffusion model works (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor

from mmdiffrep.diffusion.model_files import Part
from mmdiffrep.diffusion.networks import load_autoencoder
from mmdiffrep.registry import MODELS

from .inputs import UNIT_RANGE


@MODELS.register_module()
class AutoencoderPretrainer(BaseModel):
    """An ``AutoencoderKL``: mean absolute error of the reconstruction, plus a small weight on the KL divergence to N(0, 1).

    Without the paper's perceptual and adversarial losses, which need further networks: details come out smooth.

    The latents' root mean square is averaged while training and saved as ``scaling_factor`` = 1 / root mean square, so that a diffusion
    model sees latents of about unit variance.

    Args:
        autoencoder: arguments of diffusers' ``AutoencoderKL``, or ``dict(pretrained=…)``.
        kl_weight: of the divergence, per latent value.
        gradient_weight: of the mean absolute error of the picture's horizontal and vertical differences, which keeps edges sharp.
        channels_last: speed on an accelerator.
        data_preprocessor: must bring images to [-1, 1]; the default does, from mmcv's BGR.
    """

    latent_square: Tensor
    latent_steps: Tensor

    def __init__(
        self,
        autoencoder: Mapping[str, Any],
        kl_weight: float = 1e-4,
        gradient_weight: float = 0.0,
        channels_last: bool = False,
        data_preprocessor: Mapping[str, Any] | None = None,
        seed: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        from diffusers import AutoencoderKL

        super().__init__(data_preprocessor or UNIT_RANGE, init_cfg)
        if kl_weight < 0 or gradient_weight < 0:
            raise ValueError(f'kl_weight={kl_weight}, gradient_weight={gradient_weight} do not fit; allowed: 0 or more')
        if 'pretrained' in autoencoder:
            self.vae = load_autoencoder(autoencoder['pretrained'])
        else:
            self.vae = Part(dict(autoencoder)).build(AutoencoderKL, seed)
        self.vae.requires_grad_(True).train()
        if channels_last:
            self.vae.to(memory_format=torch.channels_last)
        self.kl_weight, self.gradient_weight = kl_weight, gradient_weight
        # the mean square of the latents: of all steps, from the 100th on an exponential average with a memory of 100
        self.register_buffer('latent_square', torch.tensor(1.0 / self.vae.config.scaling_factor**2))
        self.register_buffer('latent_steps', torch.tensor(100.0 if 'pretrained' in autoencoder else 0.0))

    def forward(
        self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor', **_: Any
    ) -> dict[str, Tensor] | list[dict[str, Tensor]] | Tensor:
        """Images (B, 3, H, W) in [-1, 1]. ``'loss'``: dict; ``'predict'``: one dict(loss) an image; ``'tensor'``: reconstructions."""
        posterior = self.vae.encode(inputs).latent_dist
        latent = posterior.sample() if mode == 'loss' else posterior.mean
        output = self.vae.decode(latent).sample
        if mode == 'tensor':
            return output
        error = (output.float() - inputs.float()).abs()
        if mode == 'predict':
            return [dict(loss=value) for value in error.flatten(1).mean(1).cpu()]
        with torch.no_grad():
            self.latent_steps += 1
            weight = (1 / self.latent_steps).clamp(min=0.01)
            self.latent_square.lerp_(latent.float().square().mean(), weight)
        losses = dict(loss_reconstruction=error.mean(), loss_kl=self.kl_weight * kl_divergence(posterior))
        if self.gradient_weight:
            losses['loss_gradient'] = self.gradient_weight * _gradient_error(output.float(), inputs.float())
        return losses

    # ---- what SaveDiffusersHook asks ----------------------------------------------------------------------

    def save_diffusers(self, folder: Path, dtype: torch.dtype) -> None:
        import copy

        vae = copy.deepcopy(self.vae).to('cpu', dtype).eval()
        vae.register_to_config(scaling_factor=round(float(self.latent_square.rsqrt()), 5))
        vae.save_pretrained(folder)

    def card(self) -> list[str]:
        parameters = sum(p.numel() for p in self.vae.parameters()) / 1e6
        stride = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return [f'- network: AutoencoderKL, {parameters:.2f}M parameters, stride {stride}, {self.vae.config.latent_channels} channels']


def kl_divergence(posterior: Any) -> Tensor:
    """Mean over latent values of KL(N(mean, std²) || N(0, 1)) = (mean² + std² - 1 - ln std²) / 2."""
    log_variance = posterior.logvar.float()
    return 0.5 * (posterior.mean.float() ** 2 + log_variance.exp() - 1 - log_variance).mean()


def _gradient_error(output: Tensor, target: Tensor) -> Tensor:
    difference = output - target
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
