"""Finding and reading pre-trained weights: short names, hub ids, folders, single files.

Weights are read with ``weights_only=True`` or as safetensors; nothing that a file holds is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

SHIPPED = Path(__file__).resolve().parents[1] / 'data' / 'weights'
HUB_PATTERNS = (
    'unet/*', 'transformer/*', 'vae/*', 'text_encoder/*', 'tokenizer/*', 'scheduler/*', 'diffusion_pytorch_model*',
)  # fmt: skip
HUB_UNUSED = ('*.msgpack', '*.onnx*', '*.ckpt', '*non_ema*', '*flax*', '*openvino*', '*.h5')
WEIGHT_SUFFIXES = ('.safetensors', '.pt', '.pth', '.ckpt', '.bin')


@dataclass
class Source:
    """Where weights are: a folder in diffusers' layout, or a single file."""

    name: str  # as the user gave it
    path: Path
    revision: str | None = None  # a hub commit
    shipped: bool = field(default=False)

    def folder(self, *subfolders: str) -> Path | None:
        """The first of ``subfolders`` that holds a config.json ('' is the folder itself)."""
        for name in subfolders:
            if (self.path / name / 'config.json').is_file():
                return self.path / name
        return None

    def fingerprint(self, files: list[Path]) -> str:
        """Names the weights' content, so that a checkpoint can tell which frozen weights it belongs to.

        Nothing but the content: the same weights fit by a hub id, from a download, and after a folder was renamed.
        """
        digest = hashlib.sha256()
        for file in sorted(files):
            digest.update(file_sha256(file).encode())
        return f'sha256:{digest.hexdigest()}'


def shipped_models() -> list[str]:
    """Short names of the models that come with the package."""
    if not SHIPPED.is_dir():
        return []
    return sorted(f'mmdiffrep/{path.name}' for path in SHIPPED.iterdir() if path.is_dir())


def locate(name: str | Path) -> Source:
    """Find weights by a short name (``mmdiffrep/toy-unet``), a path, a URL of a file, or a hub id (``org/name[@revision]``).

    Raises:
        FileNotFoundError: nothing is there, or the hub cannot be reached.
    """
    text = str(name)
    path = Path(text).expanduser()
    if path.exists():
        return Source(text, path)
    if text.startswith('mmdiffrep/'):
        folder = SHIPPED / text.partition('/')[2]
        if not folder.is_dir():
            raise FileNotFoundError(
                f'pretrained={text!r}: no such model ships with this package. Shipped: {shipped_models()}'
            )
        return Source(text, folder, shipped=True)
    if text.startswith(('http://', 'https://')):
        return Source(text, _download(text))
    if path.suffix in WEIGHT_SUFFIXES or text.startswith(('.', '/', '~')) or text.count('/') != 1:
        near = _neighbours(path)
        raise FileNotFoundError(
            f'pretrained={text!r}: no such file or folder (looked in {path.absolute().parent}'
            + (f', which has {near}' if near else '')
            + f'). Give a path, a hub id such as "google/ddpm-cat-256", or one of {shipped_models()}'
        )
    return _from_hub(text)


def _neighbours(path: Path) -> list[str]:
    parent = path.absolute().parent
    return sorted(entry.name for entry in parent.iterdir())[:5] if parent.is_dir() else []


def _from_hub(text: str) -> Source:
    from huggingface_hub import snapshot_download

    repo, _, revision = text.partition('@')
    try:
        # one file format of what is used of a pipeline; the others only where a repository has no safetensors
        options = dict(revision=revision or None, allow_patterns=['*.json', *HUB_PATTERNS])
        folder = snapshot_download(
            repo, ignore_patterns=[*HUB_UNUSED, '*.bin', '*.fp16.*'], **options
        )
        if not any(Path(folder).rglob('*.safetensors')):
            folder = snapshot_download(repo, ignore_patterns=list(HUB_UNUSED), **options)
    except Exception as error:  # the hub's own error types differ between its releases
        raise FileNotFoundError(
            f'pretrained={text!r} is neither a file nor a folder here, and fetching it from the Hugging Face hub failed '
            f'({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}). Check the spelling and the network, or download it '
            'on a machine that has one (`huggingface-cli download ID --local-dir FOLDER`) and give the folder'
        ) from error
    path = Path(folder)
    return Source(repo, path, revision=path.name)  # a snapshot's folder is named by its commit


def _download(url: str) -> Path:
    target = Path(torch.hub.get_dir()) / 'checkpoints' / Path(urlsplit(url).path).name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                url, str(target)
            )  # writes a temporary file, shows progress
        except OSError as error:
            raise FileNotFoundError(
                f'pretrained={url!r} could not be downloaded ({error}). Fetch it elsewhere and give the local path'
            ) from error
    return target


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from error


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
        value = value.to(torch.float32) if value.is_floating_point() else value
        if isinstance(old, nn.Parameter):
            # a copy: the file may be memory-mapped, and the weights may be trained
            owner.register_parameter(leaf, nn.Parameter(value.clone()))
        else:
            owner.register_buffer(leaf, value.clone())


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
