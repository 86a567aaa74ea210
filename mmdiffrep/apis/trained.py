"""Finding a config and trained weights, and putting one into the other."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config
from torch import nn

from mmdiffrep.utils import cli
from mmdiffrep.utils.checkpoints import read_checkpoint, weight_file


def read_config(config: str | Path | Config) -> Config:
    """A config as it is, from a file, or by the name of one that comes with the package, with or without ``.py``.

    Raises:
        FileNotFoundError: no such config; the nearest names are listed.
    """
    if isinstance(config, Config):
        return config
    known = {path.stem: path for path in cli.known_configs()}
    return Config.fromfile(known.get(str(config)) or cli.existing_config(str(config)))


def load_trained(model: nn.Module, weights: str | Path) -> Path:
    """Load what a training wrote: every trained tensor, and nothing else. The file that it was in.

    Nothing but tensors, numbers and mmengine's log is read, never code.

    Raises:
        FileNotFoundError: see :func:`weight_file`.
        ValueError: the weights are not of this model, or the file holds more than weights.
    """
    file = weight_file(weights)
    # a distributed wrapper adds a prefix
    state = {
        key.removeprefix('module.'): value
        for key, value in read_checkpoint(file)['state_dict'].items()
    }
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
