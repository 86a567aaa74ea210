"""Finding a config and trained weights, and putting one into the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from mmdiffrep.diffusion.loading import locate
from mmdiffrep.diffusion.weights import load_pickle
from mmdiffrep.utils import cli

KINDS = ('.safetensors', '.pth')


def read_config(config: str | Path | Config) -> Config:
    """A config as it is, from a file, or by the name of one that comes with the package, with or without ``.py``.

    Raises:
        FileNotFoundError: no such config; the nearest names are listed.
    """
    if isinstance(config, Config):
        return config
    known = {path.stem: path for path in cli.known_configs()}
    return Config.fromfile(known.get(str(config)) or cli.existing_config(str(config)))


def weight_file(weights: str | Path) -> Path:
    """A file of weights: the path of one, an address, a short name (``mmdiffrep/…``), or a folder: with one .safetensors file, or
    a training's, of which the last checkpoint is taken.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder of which it is not clear what is meant.
    """
    text = str(weights)
    path = Path(text).expanduser()
    if not path.exists() and (text.startswith('mmdiffrep/') or '://' in text):
        path = locate(text).path
    if not path.is_dir():
        return Path(cli.existing_checkpoint(str(path)))
    last = path / 'last_checkpoint'
    if last.is_file():
        named = Path(last.read_text(encoding='utf-8').strip())
        # a training's folder may have been moved since
        return Path(cli.existing_checkpoint(str(named if named.is_file() else path / named.name)))
    found = sorted(entry for entry in path.iterdir() if entry.suffix in KINDS)
    chosen = [entry for entry in found if entry.suffix == KINDS[0]] or found
    if len(chosen) != 1:
        raise ValueError(
            f'weights {text!r} is a folder with {[entry.name for entry in chosen][:6]}; needed: one file of {list(KINDS)}. Give the file'
        )
    return chosen[0]


def load_trained(model: nn.Module, weights: str | Path) -> Path:
    """Load what a training wrote: every trained tensor, and nothing else. The file that it was in.

    Nothing but tensors, numbers and mmengine's log is read, never code.

    Raises:
        FileNotFoundError: see :func:`weight_file`.
        ValueError: the weights are not of this model, or the file holds more than weights.
    """
    file = weight_file(weights)
    state = _state(file)
    if not state:
        raise ValueError(f'{file} holds no tensors')
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # shapes
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(
            f'{file} is not of this config: {len(lines)} tensors have another shape, such as: {lines[0] if lines else error}'
        ) from error
    if missing or unexpected:
        raise ValueError(
            f'{file} is not of this config: it lacks {len(missing)} tensors {missing[:3]} and has {len(unexpected)} that the model does '
            f'not know {unexpected[:3]}. Give the config that it was trained with'
        )
    return file


def _state(file: Path) -> dict[str, Any]:
    if file.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            state = load_file(file)
        except SafetensorError as error:
            raise ValueError(
                f'{file} cannot be read ({error}). Is the download complete?'
            ) from error
    else:
        state = load_pickle(file)
        state = state.get('state_dict', state)
    # as a distributed wrapper writes them
    return {key.removeprefix('module.'): value for key, value in state.items()}
