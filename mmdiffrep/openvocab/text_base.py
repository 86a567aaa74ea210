"""What every text encoder is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hashing import digest, tensor_bytes

PROGRESS_FROM = 2000  # texts
# what a tokenizer does with these belongs to its fingerprint
PROBES = [
    '',
    'a photo of a Cat.',
    'traffic-light naïve ÜNÏ 12.5% (x)',
    'Don’t\n  "red_ball"  日本',
    'red ' * 600,
]


class TextEncoder(ABC):
    """Texts -> (N, width) fp32 on the CPU, unit norm, without gradient.

    Not an ``nn.Module``, and never one of a model's own: a model that holds an encoder has none of its weights in a checkpoint, and a
    copy of the model shares it. Frozen: whoever changes its weights must build a new one.

    Attributes:
        width: of an embedding.
        fingerprint: a hash of what decides the embeddings, weights and tokenizer: equal content, equal fingerprint, wherever it lies.
        takes_templates: whether it reads any text, and not only the names it knows.
        batch_size: texts at once.
    """

    width: int
    fingerprint: str
    takes_templates = True
    batch_size = 128

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """
        Raises:
            ValueError: one string, or something that is no string.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'texts={texts!r}: give a list of strings')
        if not texts:
            return torch.zeros(0, self.width)
        return F.normalize(self._embed(list(texts)), dim=-1)

    @abstractmethod
    def _embed(self, texts: list[str]) -> Tensor:
        """(N, width) fp32 on the CPU, of any norm."""

    def knows(self, text: str) -> bool:
        """Whether it has an embedding of a text."""
        return True

    def void(self) -> Tensor:
        """The embedding of the empty text (width,), from which a learned void starts; zeros where there is none."""
        return self([''])[0]

    def release(self) -> None:  # noqa: B027  without a network there is nothing to drop
        """Drop the network from memory; the next text loads it again."""

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        return self  # frozen


class NetworkEncoder(TextEncoder):
    """An encoder with a network and a tokenizer.

    Args:
        device: where it runs; embeddings are given on the CPU.
    """

    def __init__(self, device: str | torch.device = 'cpu') -> None:
        self.device = torch.device(device)
        self._held: list[tuple[nn.Module, Any]] = []  # in a list, as no module registers it
        self.width = 0
        self.fingerprint = ''
        network, tokenizer = self._ready()
        self.width = len(self([''])[0])
        self.fingerprint = self._fingerprint(network, tokenizer)

    def _fingerprint(self, network: nn.Module, tokenizer: Any) -> str:
        facts = (type(self).__name__, *self._facts(network, tokenizer))
        return digest(
            *[str(fact).encode() for fact in facts],
            *_weights(self._parts(network)),
            *_tokenizer_content(self._vocabulary(tokenizer), self._ids(tokenizer, PROBES)),
        )

    @abstractmethod
    def _load(self) -> tuple[nn.Module, Any]:
        """(network, tokenizer)."""

    @abstractmethod
    def _run(self, network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
        """(N, width) of one batch, on any device."""

    @abstractmethod
    def _ids(self, tokenizer: Any, texts: list[str]) -> Any:
        """Token ids of texts."""

    def _vocabulary(self, tokenizer: Any) -> dict[str, int]:
        return tokenizer.get_vocab()

    def _parts(self, network: nn.Module) -> Iterable[tuple[str, Tensor]]:
        """The weights that decide the embeddings, by names that do not depend on a library's release."""
        return ((n.removeprefix('text_model.'), p) for n, p in network.named_parameters())

    def _facts(self, network: Any, tokenizer: Any) -> tuple[Any, ...]:
        """What besides the weights decides the embeddings."""
        return ()

    def _ready(self) -> tuple[nn.Module, Any]:
        if not self._held:
            network, tokenizer = self._load()
            network.requires_grad_(False).eval().float().to(self.device)
            if self.fingerprint and self.fingerprint != self._fingerprint(network, tokenizer):
                raise ValueError(
                    f'{type(self).__name__}: its files changed after it was released; build a new encoder, so that no embedding of '
                    'the former weights is taken for one of the new'
                )
            self._held.append((network, tokenizer))
        return self._held[0]

    def release(self) -> None:
        self._held.clear()

    @torch.no_grad()
    def _embed(self, texts: list[str]) -> Tensor:
        network, tokenizer = self._ready()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
        starts: Iterable[int] = range(0, len(texts), self.batch_size)
        if len(texts) > PROGRESS_FROM:
            from tqdm import tqdm

            starts = tqdm(starts, f'Embedding {len(texts)} texts', unit='batch')
        rows = []
        with torch.autocast(self.device.type, enabled=False):  # fp32, whoever asks
            for start in starts:
                batch = [texts[i] for i in order[start : start + self.batch_size]]
                rows.append(self._run(network, tokenizer, batch).float().cpu())
        sorted_rows = torch.cat(rows)
        result = torch.empty_like(sorted_rows)
        result[order] = sorted_rows
        return result


def _weights(parts: Iterable[tuple[str, Tensor]]) -> Iterable[bytes]:
    for name, value in sorted(parts, key=lambda part: part[0]):
        yield name.encode()
        yield tensor_bytes(value)


def _tokenizer_content(vocabulary: dict[str, int], probes: Any) -> Sequence[bytes]:
    """What a tokenizer does, told without its library's own format."""
    entries = sorted(vocabulary.items(), key=lambda entry: (entry[1], entry[0]))
    return repr(entries).encode(), repr(probes).encode()
