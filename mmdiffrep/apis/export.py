"""A training's checkpoint as a small folder to hand on: trained tensors as .safetensors, and a card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmdiffrep.engine.saving import DTYPES, replace_folder
from mmdiffrep.registry import MODELS
from mmdiffrep.utils.checkpoints import CONFIG_KEY, read_checkpoint, weight_file

from .trained import load_trained, read_config

CARD = 'README.md'


def export_weights(
    checkpoint: str | Path,
    config: str | Path | Config,
    folder: str | Path,
    name: str | None = None,
    dtype: str = 'fp16',
    licence: str = 'apache-2.0',
    description: str = '',
    command: str | None = None,
    data: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``folder/NAME.safetensors`` and ``folder/README.md``; the folder appears complete or not at all. Its path.

    The file holds what the training changed, and the digests of the frozen parts that it belongs to; its metadata name the config,
    the iterations, the seed and those parts. It is loaded as a checkpoint is, in the model's own precision.

    Args:
        checkpoint: see :func:`~mmdiffrep.utils.checkpoints.weight_file`.
        config: the one that it was trained with: a file, the name of one that comes with the package, or a ``Config`` from a file.
        folder: an earlier export in it is replaced.
        name: of the model; default: the folder's.
        dtype: ``'fp16'`` or ``'fp32'``, of numbers that are not whole; digests and counters stay as they are.
        licence, description, command, data, notes: for the card. ``command`` and ``data`` are the config's where nothing is said.

    Raises:
        FileNotFoundError: checkpoint or config are not there.
        ValueError: the checkpoint is of another config; a number is too large for ``dtype``; the folder holds other files.
    """
    if dtype not in DTYPES:
        raise ValueError(f'dtype={dtype!r} is unknown; allowed: {sorted(DTYPES)}')
    folder = Path(folder).expanduser()
    name = name or folder.name
    _check_folder(folder)
    cfg, file = read_config(config), weight_file(checkpoint)
    if not cfg.filename:
        raise ValueError('the config is of no file: give a file, so that the weights can name it')
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        model = MODELS.build(cfg.model)
    load_trained(model, file)
    meta = read_checkpoint(file)['meta']
    tensors = {key: _stored(key, value, dtype) for key, value in model.state_dict().items()}
    metadata = {
        CONFIG_KEY: Path(cfg.filename).stem,
        'name': name,
        'frozen': json.dumps(frozen_digests(model)),
        'iterations': str(meta.get('iter', '')),
        'seed': str(meta.get('seed', '')),
        **_dataset_meta(meta),
    }
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    facts = [
        f'config: `{_shown(cfg.filename)}`',
        f'weights: the trained part alone, {trained:,} parameters, {dtype}',
        *(f'frozen, not in the file: {what}' for what in _origins(cfg.model)),
        f'data: {data or _data(cfg)}',
        f'iterations: {meta.get("iter", "unknown")}; seed: {meta.get("seed", "unknown")}',
        f'command: `{command or "python tools/train.py " + _shown(cfg.filename)}`',
        *notes,
    ]
    text = _card(name, licence, description, facts)

    def write(new: Path) -> None:
        from safetensors.torch import save_file

        new.mkdir(parents=True)
        save_file(tensors, new / f'{name}.safetensors', metadata)
        (new / CARD).write_text(text, encoding='utf-8')

    replace_folder(folder, write)
    return folder


def _card(name: str, licence: str, description: str, facts: Sequence[str]) -> str:
    """A README.md with the head that model hubs read."""
    head = ['---', 'library_name: mmdiffrep', f'license: {licence}', 'tags: [mmdiffrep]', '---']
    said = [description, ''] if description else []
    return '\n'.join([*head, f'# {name}', '', *said, *(f'- {fact}' for fact in facts), ''])


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder} is a file; give a folder to write')
    others = (
        sorted(p.name for p in folder.iterdir() if p.name != CARD and p.suffix != '.safetensors')
        if folder.exists()
        else []
    )
    if others:
        raise ValueError(
            f'{folder} holds {others[:5]}, which is no earlier export, and would be replaced as a whole. Give another folder'
        )


def _stored(key: str, value: Tensor, dtype: str) -> Tensor:
    """A copy to be written, since tensors may share memory."""
    if not value.is_floating_point():
        return value.detach().cpu().clone().contiguous()
    stored = value.detach().cpu().to(DTYPES[dtype], copy=True).contiguous()
    if bool(torch.isfinite(value).all()) and not bool(torch.isfinite(stored).all()):
        raise ValueError(
            f'{key} has numbers up to {value.abs().max():.3g}, too large for {dtype}: take fp32'
        )
    return stored


def frozen_digests(model: nn.Module) -> dict[str, str]:
    """SHA-256 of what a model keeps outside its checkpoints, by the name of the buffer that guards it."""
    return {
        key: bytes(value.tolist()).hex()
        for key, value in model.state_dict().items()
        if key.endswith('_digest') and value.dtype == torch.uint8
    }


def _dataset_meta(meta: Mapping[str, Any]) -> dict[str, str]:
    """Classes and colours, which the toolkits' inferencers ask for."""
    given = meta.get('dataset_meta') or {}
    plain = {key: given[key] for key in ('classes', 'palette') if given.get(key) is not None}
    return {'dataset_meta': json.dumps(plain)} if plain else {}


def _shown(path: str | Path) -> str:
    """A config's path from the checkout or the package on, else its name."""
    parts = Path(path).absolute().parts
    return '/'.join(parts[parts.index('configs') :]) if 'configs' in parts else parts[-1]


def _data(cfg: Config) -> str:
    dataset = cfg.get('train_dataloader', {}).get('dataset', {})
    found = [str(dataset[key]) for key in ('data_root', 'ann_file') if dataset.get(key)]
    return ', '.join(found) or 'unknown'


def _origins(node: Any, place: str = '') -> Iterator[str]:
    """Weights that a config names: ``pretrained``, or ``name`` of what has a ``kind``."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            here = f'{place}.{key}' if place else str(key)
            named = key == 'pretrained' or (key == 'name' and 'kind' in node)
            if named and isinstance(value, str):
                yield f'`{here}`, {value}{_hash(value)}'
            else:
                yield from _origins(value, here)
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            yield from _origins(value, f'{place}.{number}')


def _hash(name: str) -> str:
    """Of the weights that ship, in short, so that a card tells which they were."""
    from mmdiffrep.diffusion.hashes import file_sha256
    from mmdiffrep.diffusion.loading import locate, shipped_models

    if name not in shipped_models():
        return ''
    files = sorted(locate(name).path.rglob('*.safetensors'))
    digest = hashlib.sha256(''.join(map(file_sha256, files)).encode())
    return f' (sha256 {digest.hexdigest()[:12]})'
