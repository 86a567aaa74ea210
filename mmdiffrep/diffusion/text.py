"""Text for a network: prompts, class names and saved embeddings as tokens (L, D)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .ldm import CLIP, OPEN_CLIP
from .loading import locate
from .model_files import ModelFiles, Part
from .weights import WeightFile, load_tensors


class TextEncoder:
    """A pipeline's text encoder and tokenizer; encodes on the CPU in fp32.

    Raises:
        FileNotFoundError: the model has no text encoder.
    """

    def __init__(self, files: ModelFiles) -> None:
        if files.text_folder is not None:
            self.model, self.tokenizer = _from_folder(files.text_folder)
        elif files.text is not None:
            self.model, self.tokenizer = _from_single_file(files.text), None
            # SD 1 pads with the end-of-text token, SD 2 with 0
            self.pads_with_end = any(name.startswith(CLIP) for name in files.text.names)
        else:
            raise FileNotFoundError(
                f'{files.name} has no text encoder (or its config has no text_encoder), so that prompts cannot be encoded: give '
                'tokens=FILE (a saved embedding), or a model with text_encoder/ and tokenizer/'
            )
        self.model.requires_grad_(False).eval()
        self._seen: dict[str, Tensor] = {}

    @classmethod
    def from_source(cls, source: str | Path) -> TextEncoder:
        """From a short name, a hub id or a folder with ``text_encoder/`` and ``tokenizer/``."""
        encoder = cls.__new__(cls)
        encoder.model, encoder.tokenizer = _from_folder(locate(source).path)
        encoder.model.requires_grad_(False).eval()
        encoder._seen = {}
        return encoder

    @property
    def length(self) -> int:
        """Tokens a prompt."""
        return self.model.config.max_position_embeddings

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.model.config.hidden_size

    def __deepcopy__(self, memo: dict[int, Any]) -> TextEncoder:
        return self  # frozen: a copy of the denoiser (an EMA, say) shares it

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (B, L, D); what was asked before is not encoded again."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._seen]
        if new:
            if len(self._seen) > 1000:  # 236 kB each
                self._seen.clear()
                new = list(dict.fromkeys(prompts))
            self._seen.update(zip(new, self._run(new).last_hidden_state.float().cpu()))
        return torch.stack([self._seen[prompt] for prompt in prompts])

    def pooled(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> (B, D): the output at the end-of-text token, after the final norm."""
        return self._run(prompts).pooler_output

    @torch.no_grad()
    def _run(self, prompts: Sequence[str]) -> Any:
        ids = self._ids(prompts).to(self.model.device)
        with torch.autocast(ids.device.type, enabled=False):  # fp32, whoever asks first
            return self.model(ids)

    def _ids(self, prompts: Sequence[str]) -> Tensor:
        if self.tokenizer is not None:
            encoded = self.tokenizer(
                list(prompts),
                padding='max_length',
                truncation=True,
                max_length=self.length,
                return_tensors='pt',
            )
            return encoded.input_ids
        return clip_ids(prompts, self.length, self.pads_with_end)


def clip_ids(prompts: Sequence[str], length: int, pad_with_end: bool) -> Tensor:
    """CLIP's token ids (B, length), by open_clip's tokenizer, which ships the vocabulary; padded with the end of text, or 0."""
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise ImportError(
            "a single-file model has no tokenizer; open_clip's is used: pip install 'mmdiffrep[openvocab]'"
        ) from error
    tokenizer = SimpleTokenizer(context_length=length)
    ids = tokenizer(list(prompts))
    if pad_with_end:
        end = tokenizer.eot_token_id
        after = torch.arange(length) > (ids == end).int().argmax(1, keepdim=True)
        ids = torch.where(after, end, ids)
    return ids


def _from_folder(folder: Path) -> tuple[nn.Module, Any]:
    from transformers import CLIPTextModel, CLIPTokenizer

    for name in ('text_encoder', 'tokenizer'):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f'{folder} has no {name}/, which encodes prompts: fetch it too, or give tokens=FILE (a saved embedding)'
            )
    model = CLIPTextModel.from_pretrained(folder / 'text_encoder', local_files_only=True)
    return model.float(), CLIPTokenizer.from_pretrained(folder / 'tokenizer', local_files_only=True)


def _from_single_file(part: Part) -> nn.Module:
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_open_clip_checkpoint,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    assert part.read is not None
    model = CLIPTextModel(CLIPTextConfig(**part.config))
    state = {name: part.read(name) for name in part.names}
    if any(name.startswith(OPEN_CLIP) for name in state):
        found = convert_open_clip_checkpoint(model, state)
    else:
        found = convert_ldm_clip_checkpoint(
            {name: value for name, value in state.items() if name.startswith(CLIP)}
        )
    wanted = model.state_dict()
    named = {_own_name(name, wanted): value.float() for name, value in found.items()}
    missing = sorted(
        set(wanted) - set(named) - {name for name in wanted if name.endswith('position_ids')}
    )
    if missing:
        raise ValueError(
            f'{part.files[0]} lacks {len(missing)} weights of its text encoder, for example {missing[:3]}'
        )
    model.load_state_dict({name: named[name] for name in wanted if name in named}, strict=False)
    return model


def _own_name(name: str, wanted: dict[str, Tensor]) -> str:
    """transformers 5 dropped the prefix 'text_model.' that checkpoints have."""
    short = name.removeprefix('text_model.')
    return short if name not in wanted and short in wanted else name


def class_tokens(
    encoder: TextEncoder,
    class_names: Sequence[str],
    templates: Sequence[str] = ('a photo of a {}.',),
) -> Tensor:
    """One token a class name (1, K, D): the mean over templates of the pooled text (VPD, Zhao et al., ICCV 2023)."""
    if isinstance(class_names, str):
        raise ValueError(f'class_names={class_names!r} is one string; give a list of names')
    bad = [template for template in templates if '{}' not in template]
    if bad or not templates or not class_names:
        raise ValueError(
            f"class names {list(class_names)} with templates {list(templates)}: give at least one of each, and '{{}}' in every "
            'template where the name belongs'
        )
    rows = [
        encoder.pooled([template.format(name) for template in templates]).mean(0)
        for name in class_names
    ]
    return torch.stack(rows)[None]


def load_tokens(path: str | Path, width: int) -> Tensor:
    """A saved embedding (1, L, D) from a .npy, .safetensors or .pt file that holds one array (L, D) or (1, L, D).

    Raises:
        FileNotFoundError, ValueError: no such file, several arrays, or another width than the network takes.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f'tokens={str(path)!r}: no such file (a saved text embedding, .npy, .safetensors or .pt)'
        )
    if file.suffix == '.npy':
        found = {'': _load_array(file)}
    elif file.suffix == '.safetensors':
        weights = WeightFile([file])
        found = {key: weights.read(key) for key in weights.keys()}
    else:
        found = load_tensors(file)
    if len(found) != 1:
        raise ValueError(
            f'tokens={str(path)!r} holds {len(found)} arrays {sorted(found)[:5]}; one is expected'
        )
    tokens = next(iter(found.values())).float()
    tokens = tokens[None] if tokens.dim() == 2 else tokens
    if tokens.dim() != 3 or 0 in tokens.shape or tokens.shape[0] != 1 or tokens.shape[2] != width:
        raise ValueError(
            f'tokens={str(path)!r} has shape {tuple(tokens.shape)}; the network takes (L, {width}) or (1, L, {width})'
        )
    return tokens


def _load_array(file: Path) -> Tensor:
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False))
    except (ValueError, TypeError, EOFError) as error:
        raise ValueError(
            f'tokens={str(file)!r} cannot be read as an array of numbers ({error})'
        ) from error


def save_tokens(tokens: Tensor, path: str | Path) -> None:
    """Write tokens (1, L, D) so that ``tokens=FILE`` reads them."""
    from safetensors.torch import save_file

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.name}.new')
    save_file({'tokens': tokens.contiguous()}, str(temporary))
    temporary.rename(target)


def tokens_digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.contiguous().cpu().numpy().tobytes()).hexdigest()[:16]
