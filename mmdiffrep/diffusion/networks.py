"""Networks that are trained, and the frozen ones that they work with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .adm import adm_to_diffusers_config
from .loading import locate, read_json
from .model_files import Part, checked_config, folder_part
from .text import TextEncoder

# network -> its folder in a pipeline
KINDS = {'UNet2DModel': 'unet', 'UNet2DConditionModel': 'unet', 'DiTTransformer2DModel': 'transformer'}


class Frozen:
    """An autoencoder and a text encoder that are not trained: in no checkpoint, shared by copies (an EMA, say)."""

    def __init__(self, vae: nn.Module | None = None, text: TextEncoder | None = None) -> None:
        self.vae, self.text = vae, text
        if vae is not None:
            vae.requires_grad_(False).eval()

    def modules(self) -> list[nn.Module]:
        return [m for m in (self.vae, self.text.model if self.text is not None else None) if m is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


def load_autoencoder(source: str | Path) -> nn.Module:
    """An ``AutoencoderKL`` in fp32 from a short name, hub id or folder: its own, or a pipeline's with ``vae/``."""
    from diffusers import AutoencoderKL

    found = locate(source)
    folder = found.folder('vae', '') if found.path.is_dir() else None
    if folder is None or read_json(folder / 'config.json').get('_class_name') != 'AutoencoderKL':
        raise FileNotFoundError(
            f'autoencoder={str(source)!r}: {found.path} has no AutoencoderKL (vae/config.json, or config.json). Give a folder as '
            "diffusers' save_pretrained writes it"
        )
    part = folder_part(folder, checked_config(AutoencoderKL, read_json(folder / 'config.json')))
    vae = part.build(AutoencoderKL, 0)
    part.fill(vae, str(source))
    return vae


def network_class(kind: str) -> type:
    import diffusers

    return getattr(diffusers, kind)


def build_network(network: Mapping[str, Any], num_classes: int | None, seed: int) -> tuple[str, nn.Module]:
    """The name of a network's class in diffusers, and the network with random weights of ``seed``.

    Raises:
        ValueError: a network that cannot be trained, or a number of classes that it cannot have.
    """
    kind, config = _read(network, num_classes)
    built = Part(config).build(network_class(kind), seed)
    if kind == 'DiTTransformer2DModel':
        _begin_dit(built)
    return kind, built


def _read(network: Mapping[str, Any], num_classes: int | None) -> tuple[str, dict[str, Any]]:
    """The network's class and its arguments."""
    config = dict(network)
    kind = config.pop('_class_name', 'UNet2DModel')
    if kind == 'ADM':
        kind, config = 'UNet2DModel', adm_to_diffusers_config({'out_channels': 3, **config})
    if kind not in KINDS:
        raise ValueError(f"network of _class_name={kind!r} cannot be trained; allowed: {sorted(KINDS)} and 'ADM'")
    if num_classes is not None:
        if kind == 'UNet2DConditionModel':
            raise ValueError(f'num_classes={num_classes} for a UNet2DConditionModel: it is told a text. Leave num_classes out')
        name, count = ('num_class_embeds', num_classes + 1) if kind == 'UNet2DModel' else ('num_embeds_ada_norm', num_classes)
        if config.setdefault(name, count) != count:
            raise ValueError(f'{name}={config[name]} does not fit num_classes={num_classes}; allowed: {count}, or leave it out')
    return kind, config


def _begin_dit(network: nn.Module) -> None:
    """The paper's initial values, which diffusers leaves out: each block begins as the identity, the output as zero.

    Peebles and Xie 2023, section 3.2 (adaLN-Zero).
    """
    for block in network.transformer_blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
    for layer in (network.proj_out_1, network.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
