"""Finding trained weights by path, folder, address or short name, and reading them as mmengine does, without running anything."""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any

from ..diffusion.loading import locate, shipped_models
from ..diffusion.weights import load_pickle

SHORT = 'mmdiffrep/'  # how short names begin
KINDS = ('.safetensors', '.pth')
CONFIG_KEY = 'config'  # of a .safetensors file's metadata: the config that it was trained with


def existing_checkpoint(path: str | Path) -> str:
    """The file that ``path`` means, see :func:`weight_file`; an address as it is.

    Raises:
        FileNotFoundError: nothing is there; the checkpoints beside it, or the nearest short names, are listed.
        ValueError: a folder of which it is not clear what is meant, or the short name of something else.
    """
    return str(path) if '://' in str(path) else str(weight_file(path))


def weight_file(weights: str | Path) -> Path:
    """A file of weights: the path of one, an address, a short name (``mmdiffrep/…``), or a folder: with one .safetensors file, or
    a training's, of which the last checkpoint is taken.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: a folder of which it is not clear what is meant, or the short name of what is no trained model.
    """
    text = str(weights)
    path = Path(text).expanduser()
    if not path.exists():
        if text.startswith(SHORT):
            return _shipped(text)
        if '://' in text:
            path = locate(text).path
    return _in_folder(path, text) if path.is_dir() else _file(path, text)


def _file(path: Path, given: str) -> Path:
    if path.is_file():
        return path
    beside = sorted(str(p) for kind in KINDS for p in path.parent.glob(f'*{kind}'))
    hint = (
        f'There are: {", ".join(beside)}'
        if beside
        else f'There is no .pth or .safetensors file in {path.parent}'
    )
    raise FileNotFoundError(f'checkpoint {given!r} is not a file. {hint}')


def _in_folder(path: Path, given: str) -> Path:
    last = path / 'last_checkpoint'
    if last.is_file():
        named = Path(last.read_text(encoding='utf-8').strip())
        # a training's folder may have been moved since
        named = named if named.is_file() else path / named.name
        return _file(named, str(named))
    found = sorted(entry for entry in path.iterdir() if entry.suffix in KINDS)
    chosen = [entry for entry in found if entry.suffix == KINDS[0]] or found
    if len(chosen) != 1:
        raise ValueError(
            f'weights {given!r} is a folder with {[entry.name for entry in chosen][:6]}; needed: one file of {list(KINDS)}. Give the file'
        )
    return chosen[0]


def trained_models() -> list[str]:
    """Short names of what ships as the trained part of a config's model."""
    return [name for name in shipped_models() if _trained_file(locate(name).path) is not None]


def _trained_file(folder: Path) -> Path | None:
    """A folder's one .safetensors file, if it names the config that it was trained with."""
    files = list(folder.glob(f'*{KINDS[0]}'))
    return files[0] if len(files) == 1 and CONFIG_KEY in metadata(files[0]) else None


def _shipped(name: str) -> Path:
    known = trained_models()
    if name in known:
        found = _trained_file(locate(name).path)
        assert found is not None
        return found
    if name in shipped_models():
        raise ValueError(
            f'weights {name!r} ships, but is no trained part of a config’s model: it belongs into the config, as `pretrained` of a '
            f'denoiser or `name` of a CLIP. Trained models that ship: {known}'
        )
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f' Nearest: {", ".join(near)}.' if near else ''
    raise FileNotFoundError(
        f'weights {name!r}: no such model ships with this package.{hint} Trained models that ship: {known}'
    )


# ---- reading ---------------------------------------------------------------------------------------------------------


def metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file says about itself.

    Raises:
        ValueError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework='pt') as handle:
            return dict(handle.metadata() or {})
    except SafetensorError as error:
        raise ValueError(_broken(file, error)) from error


def read_checkpoint(weights: str | Path, device: Any = 'cpu') -> dict[str, Any]:
    """What :func:`weight_file` finds, as mmengine's checkpoints are: ``dict(state_dict=…, meta=…)``, and what else a training wrote.

    Nothing but tensors, numbers and mmengine's log is read, never code. A .safetensors file's metadata are the ``meta``.

    Args:
        device: that tensors of a .safetensors file go to.

    Raises:
        FileNotFoundError: see :func:`weight_file`.
        ValueError: the file cannot be read, or holds more than weights.
    """
    file = weight_file(weights)
    if file.suffix != KINDS[0]:
        read = load_pickle(file)
        if 'state_dict' not in read:
            read = dict(state_dict=read, meta={})
        return read
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(file, device=str(device or 'cpu'))
    except SafetensorError as error:
        raise ValueError(_broken(file, error)) from error
    meta: dict[str, Any] = metadata(file)
    if 'dataset_meta' in meta:
        meta['dataset_meta'] = json.loads(meta['dataset_meta'])
    return dict(state_dict=state, meta=meta)


def _broken(file: Path, error: Exception) -> str:
    return f'{file} cannot be read ({error}). Is the download complete?'


# ---- wherever mmengine takes a checkpoint ----------------------------------------------------------------------------

ADDRESS = r'https?://\S+\.safetensors$'
SAFETENSORS = r'(?!.*://).*\.safetensors$'


def register_schemes(loader: Any) -> None:
    """Let mmengine's ``CheckpointLoader`` (``load_from``, ``init_cfg=dict(type='Pretrained', checkpoint=…)``, the toolkits'
    inferencers) take short names, .safetensors files and folders; safe to repeat. All else is read as before.
    """
    local = loader._schemes['']
    if getattr(local, 'takes_folders', False):
        return

    def load_from_mmdiffrep(filename: str, map_location: Any = None) -> dict[str, Any]:
        return read_checkpoint(filename, map_location if isinstance(map_location, str) else 'cpu')

    def load_from_local(filename: str, map_location: Any = None) -> Any:
        path = Path(filename).expanduser()
        if not path.is_dir():
            return local(filename, map_location)
        found = weight_file(path)
        if re.fullmatch(SAFETENSORS, str(found)):
            return load_from_mmdiffrep(str(found), map_location)
        return local(str(found), map_location)

    load_from_local.takes_folders = True  # type: ignore[attr-defined]
    loader.register_scheme((re.escape(SHORT), ADDRESS, SAFETENSORS), load_from_mmdiffrep)
    loader.register_scheme('', load_from_local, force=True)
