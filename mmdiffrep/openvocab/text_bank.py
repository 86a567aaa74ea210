"""A vocabulary's embeddings, and a cache of them by content."""

from __future__ import annotations

import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .hashing import digest
from .prompts import fill, templates
from .text_base import TextEncoder
from .vocabulary import Vocabulary

MAX_ROWS = 4096  # names whose embeddings stay beside the banks


@dataclass
class TextBank:
    """The embeddings of a vocabulary.

    Attributes:
        embeddings: (S, D) fp32, unit norm, a row a synonym: the mean of its unit embeddings over the templates, normalised again.
        owner: (S,) long, each row's class, ascending.
        void: (D,) the embedding of the empty text, zeros where the encoder has none.
        texts: each row's name.
    """

    vocabulary: Vocabulary
    embeddings: Tensor
    owner: Tensor
    void: Tensor
    texts: tuple[str, ...] = ()

    def class_scores(self, logits: Tensor) -> Tensor:
        """Scores of synonyms (..., S) -> of classes (..., K), the maximum; the gradient is shared by equal ones.

        Raises:
            ValueError: another number of synonyms.
        """
        count, classes = len(self.owner), len(self.vocabulary)
        if logits.shape[-1] != count:
            raise ValueError(
                f'logits have shape {tuple(logits.shape)}; (..., {count}) is expected, one for each synonym of the {classes} classes'
            )
        if count == classes:  # a name each
            return logits
        owner = self.owner.to(logits.device).expand(logits.shape)
        lowest = logits.new_full((*logits.shape[:-1], classes), float('-inf'))
        return lowest.scatter_reduce(-1, owner, logits, 'amax')

    def to(self, device: str | torch.device) -> TextBank:
        """The same on another device."""
        return replace(
            self,
            embeddings=self.embeddings.to(device),
            owner=self.owner.to(device),
            void=self.void.to(device),
        )


class TextBanks:
    """Banks of vocabularies by one encoder, kept in memory and, if wished, on disk.

    A bank is found by its content alone (names, templates, the encoder's fingerprint), so that a changed one is never a stale one.

    Args:
        templates: see :func:`~mmdiffrep.openvocab.prompts.templates`.
        cache_dir: a folder for safetensors files; several processes may share it.
        max_kept: banks in memory; those not used for longest go first.

    Raises:
        ValueError: unknown templates, or templates for an encoder of saved names.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        templates: str | Sequence[str] = 'none',
        cache_dir: str | Path | None = None,
        max_kept: int = 64,
    ) -> None:
        self.encoder = encoder
        self.templates = _templates(templates, encoder)
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        if max_kept < 0:
            raise ValueError(f'max_kept={max_kept}; allowed: 0 (none) or more')
        self.max_kept = max_kept
        self._banks: OrderedDict[str, TextBank] = OrderedDict()
        self._rows: dict[str, Tensor] = {}
        self._voids: dict[str, Tensor] = {}

    def __call__(self, vocabulary: Vocabulary) -> TextBank:
        """The bank of a vocabulary, on the CPU. Its tensors are shared: change none.

        Where the encoder knows only saved names, the synonyms that it lacks are left out.

        Raises:
            ValueError: a class of which the encoder knows no name.
        """
        vocabulary = Vocabulary.parse(vocabulary)
        key = self._key(vocabulary)
        bank = self._banks.pop(key, None) or self._from_disk(key, vocabulary)
        if bank is None:
            bank = self._compute(vocabulary)
            self._to_disk(key, bank)
        self._banks[key] = bank
        while len(self._banks) > self.max_kept:
            self._banks.popitem(last=False)
        return replace(bank, vocabulary=vocabulary)  # things and order are not in the key

    def _key(self, vocabulary: Vocabulary) -> str:
        content = [
            self.encoder.fingerprint,
            self.templates,
            [c.names for c in vocabulary.categories],
        ]
        return digest(json.dumps(content).encode()).removeprefix('sha256:')

    def _compute(self, vocabulary: Vocabulary) -> TextBank:
        texts, owner = self._known_names(vocabulary)
        return TextBank(
            vocabulary, self._embed(texts), torch.tensor(owner), self._void(), tuple(texts)
        )

    def _known_names(self, vocabulary: Vocabulary) -> tuple[list[str], list[int]]:
        texts: list[str] = []
        owner: list[int] = []
        for number, category in enumerate(vocabulary.categories):
            known = [name for name in category.names if self.encoder.knows(name)]
            # with none the encoder itself says what it lacks
            texts += known or category.names[:1]
            owner += [number] * max(len(known), 1)
        return texts, owner

    def _embed(self, names: Sequence[str]) -> Tensor:
        """(N, D); a name that other vocabularies had is not encoded again."""
        prefix = digest(json.dumps([self.encoder.fingerprint, self.templates]).encode())
        new = [name for name in dict.fromkeys(names) if prefix + name not in self._rows]
        if new:
            texts = [fill(template, name) for name in new for template in self.templates]
            units = self.encoder(texts).unflatten(0, (len(new), len(self.templates)))
            means = F.normalize(units.mean(1), dim=-1)
            self._rows.update((prefix + name, row.clone()) for name, row in zip(new, means))
        found = torch.stack([self._rows[prefix + name] for name in names])
        for name in dict.fromkeys(names):
            self._rows[prefix + name] = self._rows.pop(prefix + name)  # used last
        while len(self._rows) > MAX_ROWS:
            del self._rows[next(iter(self._rows))]
        return found

    def _void(self) -> Tensor:
        mark = self.encoder.fingerprint
        if mark not in self._voids:
            self._voids[mark] = self.encoder.void()
        return self._voids[mark]

    def _from_disk(self, key: str, vocabulary: Vocabulary) -> TextBank | None:
        if self.cache_dir is None or not (file := self._file(key)).is_file():
            return None
        try:
            return _read(file, key, vocabulary, self.encoder.width)
        except Exception as error:  # whatever is wrong with a cache, it can be made anew
            warnings.warn(
                f'the text bank {file} is damaged ({error}): it is computed again', stacklevel=3
            )
            return None

    def _to_disk(self, key: str, bank: TextBank) -> None:
        if self.cache_dir is None:
            return
        from safetensors.torch import save_file

        self.cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.cache_dir / f'.{key}.{os.getpid()}.new'
        tensors = dict(embeddings=bank.embeddings, owner=bank.owner, void=bank.void)
        metadata = dict(key=key, texts=json.dumps(bank.texts))
        try:
            save_file(tensors, str(temporary), metadata=metadata)
            temporary.replace(self._file(key))
        finally:
            temporary.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        assert self.cache_dir is not None
        return self.cache_dir / f'{key}.safetensors'


def _templates(source: str | Sequence[str], encoder: TextEncoder) -> tuple[str, ...]:
    found = templates(source)
    if not encoder.takes_templates and found != templates('none'):
        raise ValueError(
            f"templates={source!r} with saved embeddings, whose names are embedded already; allowed: 'none'"
        )
    return found


def _read(file: Path, key: str, vocabulary: Vocabulary, width: int) -> TextBank:
    from safetensors import safe_open

    with safe_open(str(file), framework='pt') as handle:
        metadata = handle.metadata() or {}
        embeddings, owner, void = (
            handle.get_tensor(name) for name in ('embeddings', 'owner', 'void')
        )
    texts = tuple(json.loads(metadata['texts']))
    rows = len(texts)
    if metadata['key'] != key:
        raise ValueError('it is of something else')
    if embeddings.shape != (rows, width) or owner.shape != (rows,) or void.shape != (width,):
        raise ValueError('its shapes do not fit')
    if owner.unique().tolist() != list(range(len(vocabulary))):
        raise ValueError('its classes are not those of the vocabulary')
    norms = embeddings.norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-4):
        raise ValueError('its embeddings have no unit norm')
    return TextBank(vocabulary, embeddings, owner, void, texts)
