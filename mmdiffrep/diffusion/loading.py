"""Finding pre-trained weights: short names, hub ids, folders, single files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from .hashes import known_hashes

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
        for found in known_hashes(sorted(files)):
            digest.update(found.encode())
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not valid JSON: {error}') from error
