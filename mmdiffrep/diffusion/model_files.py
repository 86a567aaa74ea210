"""The files of a diffusion model: network, autoencoder, schedule, text encoder; as a folder, one file, or nothing but configs."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .loading import Source, locate, read_json
from .seeding import seeded
from .weights import WeightFile, fill, folder_weight_files

CONFIGS = Path(__file__).resolve().parents[1] / 'data' / 'configs'


@dataclass
class Part:
    """One network of a model: its config, and where each of its weights comes from."""

    config: dict[str, Any]
    files: list[Path] = field(default_factory=list)
    read: Callable[[str], Tensor] | None = None  # None: random weights
    names: set[str] = field(default_factory=set)

    def build(self, kind: type, random_seed: int | None) -> nn.Module:
        """The network on the meta device, or with random weights where a seed is given."""
        config = checked_config(kind, self.config)
        if random_seed is None:
            with torch.device('meta'):  # weights are read later, and only those that are kept
                return kind.from_config(config)  # type: ignore[attr-defined]
        with seeded(random_seed):
            return kind.from_config(config)  # type: ignore[attr-defined]

    def fill(self, module: nn.Module, source: str, skip: str | None = None) -> None:
        """Read the weights that ``module`` still has; not those whose name begins with ``skip``."""
        assert self.read is not None
        fill(module, self.read, self.names, source, skip)


@dataclass
class ModelFiles:
    """What is known about a latent diffusion model before it is built."""

    name: str
    network: Part
    vae: Part
    schedule: dict[str, Any]
    text_folder: Path | None = None  # with text_encoder/ and tokenizer/
    text: Part | None = None  # the text encoder of a single file

    def fingerprint(self, seed: int | None) -> str:
        """Names the weights' content, or the seed and configs that they are drawn from."""
        if seed is not None:
            return random_fingerprint(seed, [self.network.config, self.vae.config])
        files = list(dict.fromkeys([*self.network.files, *self.vae.files]))
        return Source(self.name, Path()).fingerprint(files)


def random_fingerprint(seed: int, config: Any) -> str:
    """Names weights that are drawn from a seed for an architecture."""
    text = json.dumps(config, sort_keys=True, default=str)
    return f'random:{seed}:{hashlib.sha256(text.encode()).hexdigest()[:16]}'


def checked_config(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a diffusers model, without diffusers' private entries. ValueError for unknown ones."""
    allowed = set(inspect.signature(kind.__init__).parameters) - {'self'}  # type: ignore[misc]
    plain = {key: value for key, value in config.items() if not key.startswith('_')}
    unknown = sorted(set(plain) - allowed)
    if unknown:
        raise ValueError(
            f'config has entries that {kind.__name__} does not know: {unknown}; allowed: {sorted(allowed)}'
        )
    return plain


def known_configs() -> list[str]:
    """Names of the architectures whose configs ship with the package."""
    return sorted(path.stem for path in CONFIGS.glob('*.json'))


def named_config(config: str | Mapping[str, Any]) -> dict[str, Any]:
    """A shipped architecture by name (``'sd15'``), a folder in diffusers' layout, or the configs themselves."""
    if not isinstance(config, str):
        return dict(config)
    if (CONFIGS / f'{config}.json').is_file():
        return read_json(CONFIGS / f'{config}.json')
    folder = Path(config).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"config={config!r} is unknown; allowed: one of {known_configs()}, a folder in diffusers' layout, or a dict of "
            "the parts' configs"
        )
    found = {path.parent.name: read_json(path) for path in folder.glob('*/*config.json')}
    return {key: value for key, value in found.items() if key != 'tokenizer'}


def find_model(
    pretrained: str | None,
    config: str | Mapping[str, Any] | None,
    part: str,
    schedule: Mapping[str, Any] | None = None,
    prediction_type: str | None = None,
) -> ModelFiles:
    """Locate a model and read its configs, none of its weights.

    Args:
        pretrained: hub id, diffusers folder, single file, short name; None with ``config``: random weights.
        config: a name from :func:`known_configs`, or dict(unet=…, vae=…, scheduler=…).
        part: the folder of the denoising network: ``'unet'`` or ``'transformer'``.
        schedule, prediction_type: replace what the model's own files say.

    Raises:
        FileNotFoundError, ValueError: what was given, what is allowed, the cure.
    """
    if pretrained is None:
        if config is None:
            raise ValueError(
                f'give pretrained=… (weights), or config=… for random weights: one of {known_configs()}, or a dict of configs'
            )
        files = _from_configs('random weights', named_config(config), part)
    else:
        source = locate(pretrained)
        if source.path.is_dir():
            if config is not None:
                raise ValueError(
                    f'pretrained={source.name!r} is a folder, which says its own architecture: leave config={config!r} out'
                )
            files = _from_folder(source, part)
        elif part != 'unet':
            raise ValueError(
                f'pretrained={source.name!r} is a single file; single files are read of Stable Diffusion only. Give a folder '
                "as diffusers' save_pretrained writes it, or a hub id"
            )
        else:
            from .ldm import read_single_file

            files = read_single_file(source, config, prediction_type)
    if schedule is not None:
        files.schedule = dict(schedule)
    if prediction_type is not None:
        files.schedule = {**files.schedule, 'prediction_type': prediction_type}
    return files


def _from_configs(name: str, configs: Mapping[str, Any], part: str) -> ModelFiles:
    missing = [key for key in (part, 'vae', 'scheduler') if not configs.get(key)]
    if missing:
        raise ValueError(
            f'config lacks {missing}; it has {sorted(configs)}, and needs {[part, "vae", "scheduler"]}'
        )
    return ModelFiles(name, Part(configs[part]), Part(configs['vae']), dict(configs['scheduler']))


def _from_folder(source: Source, part: str) -> ModelFiles:
    folders = {name: source.path / name for name in (part, 'vae', 'scheduler')}
    needed = {
        name: folder / ('scheduler_config.json' if name == 'scheduler' else 'config.json')
        for name, folder in folders.items()
    }
    missing = [str(path.relative_to(source.path)) for path in needed.values() if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f'pretrained={source.name!r}: {source.path} lacks {missing}; it holds '
            f"{sorted(entry.name for entry in source.path.iterdir())}. It should be a folder as diffusers' save_pretrained writes it"
        )
    parts = {name: folder_part(folders[name], read_json(needed[name])) for name in (part, 'vae')}
    has_text = (source.path / 'text_encoder').is_dir()
    return ModelFiles(
        source.name,
        parts[part],
        parts['vae'],
        read_json(needed['scheduler']),
        text_folder=source.path if has_text else None,
    )


def folder_part(folder: Path, config: dict[str, Any]) -> Part:
    """One network of a diffusers folder."""
    files = folder_weight_files(folder)
    weights = WeightFile(files)
    return Part(config, files, weights.read, set(weights.keys()))
