"""Reading weight files tensor by tensor, and filling networks from them.

``weights_only=True`` or safetensors; nothing that a file holds is ever executed.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class WeightFile:
    """One or several weight files, read tensor by tensor so that unwanted ones never reach memory."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._readers: dict[str, Callable[[], Tensor]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            if file.suffix == '.safetensors':
                self._open_safetensors(file)
            else:
                self._open_pickle(file)

    def _open_safetensors(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            handle = safe_open(str(file), framework='pt')
        except SafetensorError as error:
            raise ValueError(
                f'{file} is not a readable safetensors file ({error}). Is the download complete?'
            ) from error
        self.metadata.update(handle.metadata() or {})
        for key in handle.keys():
            self.shapes[key] = tuple(handle.get_slice(key).get_shape())
            # opened anew each time: the pages of a mapped file count as the process's memory as long as it is open
            self._readers[key] = lambda key=key: _read_safetensor(file, key)  # type: ignore[misc]

    def _open_pickle(self, file: Path) -> None:
        state = load_pickle(file)
        for wrapper in ('state_dict', 'model', 'ema', 'model_state_dict'):
            if isinstance(state.get(wrapper), dict):
                state = state[wrapper]
        for key, value in state.items():
            if isinstance(value, Tensor):
                self.shapes[key] = tuple(value.shape)
                self._readers[key] = lambda value=value: value  # type: ignore[misc]

    def keys(self) -> Iterator[str]:
        return iter(self.shapes)

    def read(self, key: str) -> Tensor:
        return self._readers[key]()


def _read_safetensor(file: Path, key: str) -> Tensor:
    from safetensors import safe_open

    with safe_open(str(file), framework='pt') as handle:
        return handle.get_tensor(key)


def load_pickle(file: Path) -> dict[str, Any]:
    """A dictionary that ``torch.save`` wrote, of weights and nothing else."""
    return _dictionary(file, _unpickle(file))


def load_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``torch.save`` file: those of a dictionary, or a single one under the name ''."""
    state = _unpickle(file)
    if isinstance(state, Tensor):
        return {'': state}
    return {
        key: value for key, value in _dictionary(file, state).items() if isinstance(value, Tensor)
    }


def _dictionary(file: Path, state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise ValueError(
            f'{file} holds a {type(state).__name__}; a dictionary of tensors is expected'
        )
    return state


def _unpickle(file: Path) -> Any:
    options: dict[str, Any] = dict(map_location='cpu', weights_only=True)
    try:
        try:
            state = torch.load(file, mmap=True, **options)
        except RuntimeError:  # the format before torch 1.6 cannot be memory-mapped
            state = torch.load(file, **options)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f'{file} holds more than weights: loading it could run code, so it is refused '
            f'({str(error).splitlines()[0]}). If you trust its source, load it once yourself and save the weights alone: '
            'safetensors.torch.save_file(state_dict, "weights.safetensors")'
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f'{file} cannot be read ({error}). Is the download complete?') from error
    return state


def folder_weight_files(folder: Path, stem: str = 'diffusion_pytorch_model') -> list[Path]:
    """The weight files of one model in a diffusers folder: safetensors first, sharded ones too."""
    for suffix in ('.safetensors', '.bin'):
        for name in (f'{stem}{suffix}', f'{stem}.fp16{suffix}'):
            if (folder / name).is_file():
                return [folder / name]
        shards = sorted(folder.glob(f'{stem}-*-of-*{suffix}'))
        if shards:
            return shards
    raise FileNotFoundError(
        f'{folder} has no weights: expected {stem}.safetensors (or .bin, or shards); it holds '
        f'{sorted(entry.name for entry in folder.iterdir())}'
    )


def fill(
    module: nn.Module,
    read: Callable[[str], Tensor],
    available: set[str],
    source: str,
    skip: str | None = None,
) -> None:
    """Give a module on the meta device its weights, reading only what it holds; names that begin with ``skip`` are left.

    Raises:
        ValueError: a wanted weight is missing or has another shape.
    """
    saved = set(module.state_dict())
    wanted = dict(module.named_parameters()) | {
        name: buffer for name, buffer in module.named_buffers() if name in saved
    }
    if skip is not None:
        wanted = {name: value for name, value in wanted.items() if not name.startswith(skip)}
    stored = {name: _stored_name(name, available) for name in wanted}
    missing = sorted(set(stored.values()) - available)
    if missing:
        raise ValueError(
            f'{source} lacks {len(missing)} of {len(wanted)} weights of the network, for example {missing[:3]}. '
            'Is it the checkpoint of another architecture, or is its config.json of another one?'
        )
    for name, old in wanted.items():
        value = read(stored[name])
        if value.shape != old.shape:
            raise ValueError(
                f'{source}: {name} has shape {tuple(value.shape)}, the network described by its config needs '
                f'{tuple(old.shape)}'
            )
        owner = module.get_submodule(name.rpartition('.')[0])
        leaf = name.rpartition('.')[2]
        # a copy: the file may be memory-mapped, and the weights may be trained
        value = value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
        if isinstance(old, nn.Parameter):
            owner.register_parameter(leaf, nn.Parameter(value))
        else:
            owner.register_buffer(leaf, value)


# attention in files that diffusers wrote before 0.17 (all of Google's DDPM ones on the hub)
_OLD_NAMES = {
    '.to_q.': '.query.',
    '.to_k.': '.key.',
    '.to_v.': '.value.',
    '.to_out.0.': '.proj_attn.',
}


def _stored_name(name: str, available: set[str]) -> str:
    """The name under which a file holds a weight: its own, or the one it had in early diffusers."""
    if name not in available:
        for new, old in _OLD_NAMES.items():
            if name.replace(new, old) in available:
                return name.replace(new, old)
    return name
