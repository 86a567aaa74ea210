"""PixelUNet: diffusion U-Nets in pixels (diffusers' ``UNet2DModel``; guided-diffusion's ADM through a converter).

DDPM (Ho et al., 2020, https://arxiv.org/abs/2006.11239), ADM (Dhariwal and Nichol, 2021,
https://arxiv.org/abs/2105.05233). Networks: diffusers (Apache-2.0), guided-diffusion checkpoints (MIT).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import adm
from .aliases import resolve_alias
from .condition import Condition
from .cutting import shorten_unet
from .denoiser import Denoiser
from .loading import Source, locate, read_json
from .model_files import Part, checked_config, folder_part, named_config, random_fingerprint
from .schedules import build_schedule
from .taps import Tap
from .tracing import is_abstract
from .weights import WeightFile

META = 'mmdiffrep.json'  # beside a network that this package trained: what diffusers' configs cannot say
DEFAULT_SCHEDULE = dict(
    _class_name='DDPMScheduler', num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02,
    beta_schedule='linear', prediction_type='epsilon',
)  # fmt: skip


class PixelUNet(Denoiser):
    """A U-Net that denoises pixels.

    Args:
        pretrained: a short name (``mmdiffrep/toy-unet``), a hub id, a local diffusers folder (a pipeline's or the network's
            own), a ``.safetensors`` file, or a guided-diffusion checkpoint (``.pt``, ``.safetensors``). None: random weights.
        config: ``UNet2DModel`` arguments, or ``'adm-256'``, guided-diffusion's architecture; needed without ``pretrained``, and for
            a single file that has no ``config.json`` beside it and is no ADM checkpoint (whose settings are read from its shapes).
        schedule: a diffusers scheduler config; by default the one beside the weights, else DDPM's linear one.
        random_seed: draw new weights from this seed, also where ``pretrained`` gives the architecture: the untrained
            baseline. Without ``pretrained`` the default is 0.
        keep_taps: shorten the network behind the last of these taps; what is behind is never read into memory.
        adm_options: what an ADM checkpoint's shapes do not say, see :func:`mmdiffrep.diffusion.adm.infer_adm_config`.
    """

    told = ('class_ids', 'time_bias')

    def __init__(
        self,
        pretrained: str | None = None,
        config: str | Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        random_seed: int | None = None,
        keep_taps: Iterable[str] | None = None,
        adm_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(config, str):
            named = named_config(config)
            config, schedule = named.get('unet'), schedule or named.get('scheduler')
        plan = _plan(pretrained, config, dict(adm_options or {}))
        self.alias_config = plan.part.config
        self.schedule = build_schedule(dict(schedule or plan.schedule or DEFAULT_SCHEDULE))
        if random_seed is None and pretrained is None:
            random_seed = 0
        self.unet = plan.build(random_seed)
        self.null_class = plan.null_class
        self.image_channels = self.unet.config.in_channels
        self.divisor = 2 ** sum(
            getattr(block, 'downsamplers', None) is not None for block in self.unet.down_blocks
        )
        if keep_taps is not None:
            self.cut(keep_taps)
        if random_seed is None:
            plan.part.fill(self.unet, str(pretrained))
        self.fingerprint = plan.fingerprint(random_seed)
        self.unet.requires_grad_(False).eval()

    @property
    def network(self) -> nn.Module:
        return self.unet

    def encode(self, image: Tensor) -> Tensor:
        return image

    def run(self, x_t: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        self.check_image_size(tuple(x_t.shape[-2:]))
        ids = condition.class_ids if condition is not None else None
        count = self.unet.config.num_class_embeds
        if ids is not None and count and bool(((ids < 0) | (ids >= count)).any()):
            raise ValueError(f'class ids {ids.tolist()} are unknown; allowed: 0 to {count - 1}')
        if self.unet.class_embedding is not None and ids is None and self.null_class is not None:
            ids = torch.full((len(x_t),), self.null_class, dtype=torch.long, device=x_t.device)
        if self.unet.class_embedding is not None and ids is None:
            if not torch.compiler.is_compiling() and not is_abstract(x_t):
                raise ValueError(
                    'this network is class-conditional and has no class for "unknown": give class ids (B,) by '
                    'condition=Condition(class_ids=…) or DiffusionBackbone(class_id=…)'
                )
            ids = torch.zeros(len(x_t), dtype=torch.long, device=x_t.device)
        dtype = next(self.unet.parameters()).dtype
        x = self.schedule.network_input(x_t, t).to(dtype)
        return self.unet(x, self.schedule.network_time(t), class_labels=ids).sample

    def shorten(self, last: Tap) -> None:
        shorten_unet(self.unet, last)

    def resolve_alias(self, name: str) -> str:
        return resolve_alias(name, self.alias_config)


@dataclass
class _Plan:
    """What is known before the network is built: its config and weights, its schedule, its source."""

    part: Part
    schedule: dict[str, Any] | None = None
    source: Source | None = None  # None: random weights
    null_class: int | None = None  # the class for "unknown"

    def build(self, random_seed: int | None) -> nn.Module:
        from diffusers import UNet2DModel

        return self.part.build(UNet2DModel, random_seed)

    def fingerprint(self, seed: int | None) -> str:
        if seed is not None:
            return random_fingerprint(seed, self.part.config)
        assert self.source is not None
        return self.source.fingerprint(self.part.files)


def _plan(
    pretrained: str | None, config: Mapping[str, Any] | None, adm_options: dict[str, Any]
) -> _Plan:
    if pretrained is None:
        if not config:
            raise ValueError(
                'PixelUNet needs pretrained=… (weights), or config=… (UNet2DModel arguments) for random weights'
            )
        return _Plan(Part(_clean(config)))
    source = locate(pretrained)
    if source.path.is_dir():
        return _plan_folder(source, config)
    return _plan_file(source, config, adm_options)


def _plan_folder(source: Source, config: Mapping[str, Any] | None) -> _Plan:
    folder = source.folder('unet', '')
    if folder is None:
        raise FileNotFoundError(
            f'pretrained={source.name!r}: {source.path} has no unet/config.json and no config.json. '
            "It should be a folder as diffusers' save_pretrained writes it"
        )
    unet_config = read_json(folder / 'config.json')
    kind = unet_config.get('_class_name', 'UNet2DModel')
    if kind != 'UNet2DModel':
        raise ValueError(
            f'pretrained={source.name!r} holds a {kind}; PixelUNet takes a UNet2DModel '
            '(a diffusion network in pixels without text)'
        )
    part = folder_part(folder, _clean(config or unet_config))
    about = next((p / META for p in (folder, folder.parent) if (p / META).is_file()), None)
    return _Plan(part, _schedule_near(folder), source, read_json(about).get('num_classes') if about else None)


def _schedule_near(folder: Path) -> dict[str, Any] | None:
    """The scheduler config that belongs to the network in ``folder``: beside it, or its pipeline's."""
    places = [folder, folder / 'scheduler']
    if folder.name == 'unet':
        places.append(folder.parent / 'scheduler')
    for place in places:
        if (place / 'scheduler_config.json').is_file():
            return read_json(place / 'scheduler_config.json')
    return None


def _plan_file(
    source: Source, config: Mapping[str, Any] | None, adm_options: dict[str, Any]
) -> _Plan:
    weights = WeightFile([source.path])
    if adm.is_adm_state_dict(weights.shapes):
        adm_config = adm.infer_adm_config(weights.shapes, **adm_options)
        read, names = adm.adm_reader(weights.read, weights.shapes, adm_config)
        part = Part(
            _clean(adm.adm_to_diffusers_config(adm_config)), [source.path], read, set(names)
        )
        return _Plan(part, adm.adm_scheduler_config(adm_config), source)
    beside = source.path.with_name('config.json')
    if config is None and not beside.is_file():
        raise ValueError(
            f'pretrained={source.name!r} is a single file without its architecture: put its config.json beside it, '
            'give config=dict(…) (UNet2DModel arguments), or give the diffusers folder it came from'
        )
    part = Part(
        _clean(config or read_json(beside)), [source.path], weights.read, set(weights.keys())
    )
    return _Plan(part, _schedule_near(beside.parent), source)


def _clean(config: Mapping[str, Any]) -> dict[str, Any]:
    from diffusers import UNet2DModel

    return checked_config(UNet2DModel, config)
