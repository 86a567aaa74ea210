"""CLIP's tokenizer with a vocabulary cut to what some texts need.

CLIP splits words by byte-pair merges in a fixed order of rank (Sennrich et al., ACL 2016; Radford et al., ICML 2021). Keeping only
the merges that some texts use, in their order, splits the words of these texts exactly as the whole vocabulary does; all single bytes
stay, so that any other text is split too, more finely. Ids differ from CLIP's.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

Merge = tuple[str, str]
START, END = '<|startoftext|>', '<|endoftext|>'
END_OF_WORD = '</w>'
MERGES = 49152 - 256 - 2  # those that CLIP uses of its file


def open_clip() -> Any:
    """The package. ImportError with the cure where it is not installed."""
    try:
        import open_clip as package
    except ImportError as error:
        raise ImportError(
            f"CLIP models need open_clip: pip install 'mmdiffrep[openvocab]' ({error})"
        ) from error
    return package


@lru_cache
def clip_merges() -> tuple[Merge, ...]:
    """CLIP's merges by rank, from the file that open_clip ships."""
    file = open_clip().tokenizer.default_bpe()
    lines = gzip.decompress(Path(file).read_bytes()).decode().split('\n')
    return tuple(tuple(line.split()) for line in lines[1 : MERGES + 1])  # type: ignore[misc]


def cut_merges(texts: Sequence[str]) -> list[Merge]:
    """The merges that CLIP's own tokenizer performs on some texts, by rank.

    Raises:
        ValueError: the texts are one string, or none.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(
            f'texts={texts!r}: give a list of texts whose words the vocabulary shall hold'
        )
    tokenizer = _whole_tokenizer()
    ranks = {merge: rank for rank, merge in enumerate(clip_merges())}
    words = {word for text in texts for word in tokenizer.pat.findall(tokenizer.clean_fn(text))}
    used: set[Merge] = set()
    for word in words:
        letters = [tokenizer.byte_encoder[byte] for byte in word.encode()]
        used.update(_performed([*letters[:-1], letters[-1] + END_OF_WORD], ranks))
    return sorted(used, key=ranks.__getitem__)


@lru_cache
def _whole_tokenizer() -> Any:
    return open_clip().tokenizer.SimpleTokenizer()


def _performed(symbols: list[str], ranks: dict[Merge, int]) -> list[Merge]:
    """The merges of one word, first to last."""
    done: list[Merge] = []
    while True:
        pairs = [pair for pair in zip(symbols, symbols[1:]) if pair in ranks]
        if not pairs:
            return done
        best = min(pairs, key=ranks.__getitem__)
        done.append(best)
        merged: list[str] = []
        for symbol in symbols:
            if merged and (merged[-1], symbol) == best:
                merged[-1] += symbol
            else:
                merged.append(symbol)
        symbols = merged


def build_tokenizer(texts: Sequence[str] | None = None, context_length: int = 77) -> Any:
    """An ``open_clip.HFTokenizer`` around transformers' ``CLIPTokenizer``: texts -> ids (B, context_length).

    The vocabulary: 256 bytes, the same at a word's end, the merges, start and end of text. The end pads.

    Args:
        texts: whose words the vocabulary holds; None: all of CLIP's 49408 entries, with CLIP's ids.

    Raises:
        ValueError: see :func:`cut_merges`, or a context that has no room for a word.
    """
    from transformers import CLIPTokenizer

    if context_length < 3:
        raise ValueError(
            f'context_length={context_length} does not fit; allowed: at least 3 (start, one token, end)'
        )
    merges = list(clip_merges()) if texts is None else cut_merges(texts)
    letters = list(open_clip().tokenizer.bytes_to_unicode().values())
    entries = [*letters, *(c + END_OF_WORD for c in letters), *map(''.join, merges), START, END]
    tokenizer = CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(entries)},
        merges=merges,
        model_max_length=context_length,
    )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return open_clip().tokenizer.HFTokenizer(folder, context_length=context_length)


def save_tokenizer(tokenizer: Any, folder: str | Path) -> None:
    """Write the files that transformers reads, of release 5 (tokenizer.json) and before (vocab.json, merges.txt)."""
    tokenizer.tokenizer.save_pretrained(str(folder))
    tokenizer.tokenizer.backend_tokenizer.model.save(str(folder))
