"""Embeddings of names from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiffrep.diffusion.weights import WeightFile

from .hashing import digest, tensor_bytes
from .names import clean, key, nearest, settle, unique
from .text_base import TextEncoder


class SavedText(TextEncoder):
    """Looks up the embeddings of names in a file; it knows no other text, so that templates cannot be applied.

    A name is found as the file has it and as words (``'wall-other-merged'`` as ``'wall'``, ``'bus_(vehicle)'`` as ``'bus'``: see
    :func:`~mmdiffrep.openvocab.names.clean`), whatever its case, hyphens and underscores; a LVIS synonym has its class's row.

    Args:
        embeddings: .npy or .safetensors file with one array (N, D), of any norm.
        names: of the rows: a list, or a JSON file with one, of names or of ``dict(name=…, synonyms=…)``.
        void: the embedding of the empty text: None (zeros), a name whose row stands for it, a tensor (D,), or a file with one.
        width: that is expected.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not one array, another width or count, a row of zeros, or a name twice.
    """

    takes_templates = False

    def __init__(
        self,
        embeddings: str | Path,
        names: str | Path | Sequence[Any],
        void: str | Path | Tensor | None = None,
        width: int | None = None,
    ) -> None:
        self._rows = _read_array(embeddings)
        entries = _read_names(names)
        count, found = self._rows.shape
        if width is not None and found != width:
            raise ValueError(
                f'embeddings={str(embeddings)!r} have width {found}, and {width} is expected: another text encoder made them'
            )
        if count != len(entries):
            raise ValueError(
                f'embeddings={str(embeddings)!r} has {count} rows for {len(entries)} names: each name needs one row, in the same order'
            )
        if not torch.isfinite(self._rows).all() or (self._rows.norm(dim=1) == 0).any():
            raise ValueError(
                f'embeddings={str(embeddings)!r} has rows that are zero or not finite: such names have no embedding'
            )
        self.width = found
        self._row = _index(entries)
        self._written = [entry[0] for entry in entries]
        self._void = self._read_void(void)
        parts = [f'{name}\n{row}'.encode() for name, row in sorted(self._row.items())]
        self.fingerprint = digest(
            b'SavedText', tensor_bytes(self._rows), tensor_bytes(self._void), *parts
        )

    def knows(self, text: str) -> bool:
        return key(text) in self._row

    def void(self) -> Tensor:
        return self._void.clone()

    def _embed(self, texts: list[str]) -> Tensor:
        unknown = [text for text in texts if not self.knows(text)]
        if unknown:
            raise ValueError(
                f'the saved embeddings have no {unknown[0]!r}'
                + (f' and {len(unknown) - 1} other names' if len(unknown) > 1 else '')
                + f'. Nearest: {nearest(unknown[0], self._written)}; a live text encoder reads any name'
            )
        return self._rows[[self._row[key(text)] for text in texts]]

    def _read_void(self, void: str | Path | Tensor | None) -> Tensor:
        if void is None:
            return torch.zeros(self.width)
        if isinstance(void, str) and self.knows(void):
            return self([void])[0]
        found = void.detach().float().cpu() if isinstance(void, Tensor) else _read_array(void, 1)
        if found.shape != (self.width,):
            raise ValueError(f'void has shape {tuple(found.shape)}; ({self.width},) is expected')
        return torch.nn.functional.normalize(found, dim=0)


def _index(entries: list[tuple[str, tuple[str, ...]]]) -> dict[str, int]:
    """Compared name -> row."""
    row: dict[str, int] = {}
    for number, (raw, _) in enumerate(entries):
        other = row.setdefault(key(raw), number)
        if other != number:
            raise ValueError(
                f'names has {raw!r} twice, for rows {other} and {number}: which is meant cannot be told'
            )
    words = settle([names for _, names in entries], [raw for raw, _ in entries])
    for number, group in enumerate(words):
        for name in group:
            row.setdefault(key(name), number)
    return row


def _read_names(source: str | Path | Sequence[Any]) -> list[tuple[str, tuple[str, ...]]]:
    """(name as written, as words and synonyms)."""
    if isinstance(source, (str, Path)):
        file = Path(source).expanduser()
        if not file.is_file():
            raise FileNotFoundError(f'names={str(source)!r}: no such file (a JSON list of names)')
        try:
            source = json.loads(file.read_text(encoding='utf-8'))
        except ValueError as error:
            raise ValueError(f'names={str(file)!r} is not valid JSON: {error}') from error
        if isinstance(source, Mapping):
            source = source.get('categories', source.get('classes', source))
    if not isinstance(source, Sequence) or isinstance(source, str):
        raise ValueError(f'names must be a list of names, and not {type(source).__name__}')
    entries = []
    for item in source:
        raw = item.get('name') if isinstance(item, Mapping) else item
        if not isinstance(raw, str) or not key(raw):
            raise ValueError(
                f'names has {item!r}; a name, or dict(name=…, synonyms=…), is expected'
            )
        more = item.get('synonyms') or () if isinstance(item, Mapping) else ()
        entries.append((raw, unique(name for text in (raw, *more) for name in clean(text))))
    return entries


def _read_array(path: str | Path, dims: int = 2) -> Tensor:
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f'embeddings={str(path)!r}: no such file (an array of text embeddings, .npy or .safetensors)'
        )
    if file.suffix == '.safetensors':
        weights = WeightFile([file])
        found = [weights.read(name) for name in weights.keys()]
    elif file.suffix == '.npy':
        try:
            found = [torch.from_numpy(np.load(file, allow_pickle=False))]
        except (ValueError, TypeError, EOFError) as error:
            raise ValueError(
                f'embeddings={str(path)!r} cannot be read as an array of numbers ({error})'
            ) from error
    else:
        raise ValueError(f'embeddings={str(path)!r}: the allowed kinds are .npy and .safetensors')
    if len(found) != 1 or found[0].dim() != dims or not len(found[0]):
        shapes = [tuple(array.shape) for array in found]
        wanted = '(names, width)' if dims == 2 else '(width,)'
        raise ValueError(
            f'embeddings={str(path)!r} holds arrays of shapes {shapes[:5]}; one array {wanted} is expected'
        )
    return found[0].float()
