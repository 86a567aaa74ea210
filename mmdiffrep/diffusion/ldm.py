"""Single files as CompVis and Stability AI published Stable Diffusion 1.x and 2.x: one state dict of all parts.

The names are translated by diffusers' own converters, run on stand-ins for the tensors, so that only the weights that are kept are
ever read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from .loading import Source
from .model_files import ModelFiles, Part, named_config
from .weights import WeightFile

UNET, VAE, CLIP, OPEN_CLIP = (
    'model.diffusion_model.', 'first_stage_model.', 'cond_stage_model.transformer.', 'cond_stage_model.model.',
)  # fmt: skip
_CONTEXT = UNET + 'input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight'


class _Later:
    """Stands for a tensor of the file: where it is, and what part of it is wanted."""

    def __init__(self, key: str, shape: tuple[int, ...], parts: tuple[Any, ...] = ()) -> None:
        self.key, self.shape, self.parts = key, shape, parts

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: Any) -> _Later:
        kept = self.shape[: 2 if isinstance(index, tuple) else 1]
        return _Later(self.key, kept, (*self.parts, index))

    def read(self, weights: WeightFile) -> Tensor:
        value = weights.read(self.key)
        for index in self.parts:
            value = value[index]
        return value


def read_single_file(
    source: Source, config: str | Mapping[str, Any] | None, prediction_type: str | None
) -> ModelFiles:
    """The parts of a single ``.safetensors`` or ``.ckpt`` file.

    Raises:
        ValueError: it is no Stable Diffusion 1.x or 2.x file, or it does not say what its network predicts.
    """
    weights = WeightFile([source.path])
    if config is None:
        config = _recognise(source, weights, prediction_type)
    configs = named_config(config)
    for name in ('unet', 'vae', 'scheduler'):
        if not configs.get(name):
            raise ValueError(f'config lacks {name!r}; it has {sorted(configs)}')
    network, vae = _translate(weights, configs)
    for part, name in ((network, 'U-Net'), (vae, 'autoencoder')):
        if not part.names:
            raise ValueError(
                f'{source.name} holds no {name} under the names of a Stable Diffusion file ({UNET}…, {VAE}…); '
                f'its first names are {sorted(weights.keys())[:3]}'
            )
    return ModelFiles(
        source.name, network, vae, dict(configs['scheduler']), text=_text_part(weights, configs)
    )


def _recognise(source: Source, weights: WeightFile, prediction_type: str | None) -> str:
    """The shipped config that a file's shapes belong to."""
    keys = weights.shapes
    if any(key.startswith('conditioner.embedders.') for key in keys):
        raise ValueError(f'{source.name} is an SDXL file; StableDiffusion takes SD 1.x and 2.x')
    if not any(key.startswith(UNET) for key in keys):
        raise ValueError(
            f'{source.name} holds no U-Net under the names of a Stable Diffusion file ({UNET}…); its first names are '
            f'{sorted(keys)[:3]}. Of a diffusers model give the folder, not one of its files'
        )
    channels = keys.get(UNET + 'input_blocks.0.0.weight', (0, 0))
    if channels[1] in (5, 7, 8, 9):
        raise ValueError(
            f'{source.name}: its network takes {channels[1]} channels; inpainting, depth, upscaling and editing models are not '
            'supported, StableDiffusion takes those of 4'
        )
    width = keys.get(_CONTEXT, (0, 0))[1]
    if channels[:2] != (320, 4) or width not in (768, 1024):
        raise ValueError(
            f'{source.name} is not recognised as Stable Diffusion 1.x or 2.x (first convolution {tuple(channels)}, text width {width}; '
            'expected (320, 4, 3, 3) and 768 or 1024). For another architecture give config=dict(unet=…, vae=…, scheduler=…) or '
            'a folder with its configs'
        )
    if width == 768:
        return 'sd15'
    if prediction_type is None:
        raise ValueError(
            f'{source.name} is a Stable Diffusion 2.x file, which does not say what its network predicts: give '
            "prediction_type='v_prediction' (the 768 models) or prediction_type='epsilon' (the 512 base models)"
        )
    return 'sd21' if prediction_type == 'v_prediction' else 'sd21-base'


def _translate(weights: WeightFile, configs: Mapping[str, Any]) -> tuple[Part, Part]:
    from diffusers.loaders import single_file_utils as convert

    later = {key: _Later(key, shape) for key, shape in weights.shapes.items()}
    parts = []
    for name, converter in (
        ('unet', convert.convert_ldm_unet_checkpoint),
        ('vae', convert.convert_ldm_vae_checkpoint),
    ):
        prefix = UNET if name == 'unet' else VAE
        chosen = {key: value for key, value in later.items() if key.startswith(prefix)}
        found = converter(chosen, configs[name]) if chosen else {}
        parts.append(Part(configs[name], weights.files, partial(_read, weights, found), set(found)))
    return parts[0], parts[1]


def _read(weights: WeightFile, found: Mapping[str, _Later], name: str) -> Tensor:
    return found[name].read(weights)


def _text_part(weights: WeightFile, configs: Mapping[str, Any]) -> Part | None:
    names = {key for key in weights.shapes if key.startswith((CLIP, OPEN_CLIP))}
    if not names or not configs.get('text_encoder'):
        return None
    return Part(dict(configs['text_encoder']), weights.files, weights.read, names)
