"""CLIP models in open_clip's format: built from a config, saved, loaded by a short name.

Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmdiffrep.diffusion.loading import locate, read_json, shipped_models
from mmdiffrep.diffusion.seeding import seeded

from .tokenizer import open_clip, save_tokenizer

CONFIG = 'open_clip_config.json'
WEIGHTS = 'open_clip_model.safetensors'
MAX_LOGIT_SCALE = math.log(100)  # open_clip's own bound


def build_clip(config: Mapping[str, Any]) -> nn.Module:
    """An ``open_clip.CLIP`` with random weights.

    Args:
        config: open_clip's model config: ``embed_dim``, ``vision_cfg``, ``text_cfg``, and if wished ``quick_gelu``,
            ``init_logit_scale``, …

    Raises:
        ValueError: an entry is missing or unknown.
    """
    missing = [key for key in ('embed_dim', 'vision_cfg', 'text_cfg') if key not in config]
    if missing:
        raise ValueError(
            f"clip config lacks {missing}; it has {sorted(config)}. open_clip.get_model_config('ViT-B-32') is an example"
        )
    if config['text_cfg'].get('hf_model_name'):
        raise ValueError(
            f"text_cfg has hf_model_name={config['text_cfg']['hf_model_name']!r}: only open_clip's own text transformer is trained "
            'here. Give width, heads and layers'
        )
    try:
        return open_clip().CLIP(**plain(config))
    except TypeError as error:
        raise ValueError(f'clip config does not fit open_clip.CLIP: {error}') from error


def random_clip(name: str | Path, seed: int) -> nn.Module:
    """A CLIP of a known architecture with random weights, the same for the same seed. Nothing is fetched.

    Args:
        name: see :func:`clip_architecture`.

    Raises:
        FileNotFoundError, ValueError: see there.
    """
    config = clip_architecture(str(name))
    with seeded(seed):
        return build_clip(config)


def clip_architecture(name: str) -> dict[str, Any]:
    """open_clip's model config of an architecture's name, or of a folder or short name that has one.

    Raises:
        FileNotFoundError: a folder without one.
        ValueError: open_clip knows no such architecture.
    """
    if name.startswith('mmdiffrep/') or Path(name).expanduser().is_dir():
        file = locate(name).path / CONFIG
        if not file.is_file():
            raise FileNotFoundError(f"{name!r}: {file} is not there. Give a folder in open_clip's format")
        return read_json(file)['model_cfg']
    config = open_clip().get_model_config(name)
    if config is None:
        raise ValueError(f'CLIP {name!r} is unknown to open_clip. Nearest: {_nearest(name)}')
    return plain(config)


def _nearest(name: str) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, open_clip().list_models(), 3, 0.4)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionaries and lists of JSON, without mmengine's or others' own types."""
    return json.loads(json.dumps(config))


def save_clip(
    model: nn.Module,
    config: Mapping[str, Any],
    tokenizer: Any,
    folder: str | Path,
    name: str = 'clip',
    dtype: torch.dtype = torch.float16,
    preprocess: Mapping[str, Any] | None = None,
) -> None:
    """Write what ``open_clip.create_model_and_transforms('local-dir:FOLDER')`` and its ``get_tokenizer`` read.

    ``<name>.json`` is the architecture alone, for ``open_clip.add_model_config``, after which
    ``open_clip.create_model_and_transforms(name, pretrained='FOLDER/open_clip_model.safetensors')`` works too.

    Args:
        model: an ``open_clip.CLIP``; stays as it is.
        tokenizer: of :func:`build_tokenizer`.
        preprocess: entries of open_clip's ``PreprocessCfg``: ``mean``, ``std`` of RGB in [0, 1], ``resize_mode``, …
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = plain(config)
    # '.' is this folder, where get_tokenizer('local-dir:FOLDER') looks whatever stands here
    config['text_cfg']['hf_tokenizer_name'] = '.'
    # of training; open_clip gives models in training mode, and its own configs leave it to force_patch_dropout
    config['vision_cfg'].pop('patch_dropout', None)
    full = dict(model_cfg=config, preprocess_cfg=dict(preprocess or {}))
    (folder / CONFIG).write_text(json.dumps(full, indent=1), encoding='utf-8')
    (folder / f'{name}.json').write_text(json.dumps(config, indent=1), encoding='utf-8')
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # the scale's logarithm is exponentiated: half precision would change all logits by a thousandth
    state = {
        key: value.to(dtype) if value.is_floating_point() and value.dim() else value
        for key, value in state.items()
    }
    state['logit_scale'] = state['logit_scale'].clamp(0, MAX_LOGIT_SCALE)
    save_file(state, str(folder / WEIGHTS), metadata=dict(format='pt'))
    save_tokenizer(tokenizer, folder)


def load_clip(
    name: str | Path, pretrained: str | None = None, device: str | torch.device = 'cpu'
) -> tuple[nn.Module, Any, Any]:
    """A trained CLIP: (model in eval mode, preprocess, tokenizer), all open_clip's.

    ``preprocess(PIL image)`` -> (3, S, S); ``tokenizer(texts)`` -> ids (B, L); ``model.encode_image``, ``model.encode_text``.

    Args:
        name: a short name (``'mmdiffrep/toy-clip'``), a folder with ``open_clip_config.json``, ``'hf-hub:org/name'``, or an
            architecture that open_clip knows (``'ViT-B-32'``) with ``pretrained``: its tag (``'openai'``) or a weight file.

    Raises:
        FileNotFoundError: nothing is there, or it cannot be fetched.
        ValueError: an unknown architecture or tag, or one without the other.
    """
    text = str(name)
    package = open_clip()
    if text.startswith('mmdiffrep/') or Path(text).expanduser().is_dir():
        if pretrained is not None:
            raise ValueError(
                f'{text!r} has weights of its own: leave pretrained={pretrained!r} out'
            )
        source = f'local-dir:{_folder(text)}'
    elif text.startswith('hf-hub:'):
        source = text
    else:
        _check_tag(package, text, pretrained)
        source = text
    try:
        model, _, preprocess = package.create_model_and_transforms(
            source, pretrained=pretrained, device=device
        )
        tokenizer = package.get_tokenizer(source)
    except Exception as error:  # open_clip and the hub raise many types of their own
        if source.startswith('local-dir:'):
            raise ValueError(f'{text!r} cannot be loaded by open_clip: {error}') from error
        raise FileNotFoundError(
            f'CLIP {text!r} with pretrained={pretrained!r} could not be fetched ({_first_line(error)}). Check the network, or download '
            f'it elsewhere and give a folder with {CONFIG}, or the architecture with pretrained=FILE. Shipped: {_shipped()}'
        ) from error
    return model.eval(), preprocess, tokenizer


def _folder(name: str) -> Path:
    folder = locate(name).path
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name!r}: {folder} lacks {missing}; it holds {sorted(entry.name for entry in folder.iterdir())}. A folder in open_clip's "
            f'format is needed. Shipped: {_shipped()}'
        )
    return folder


def _check_tag(package: Any, name: str, pretrained: str | None) -> None:
    if name not in package.list_models():
        if '/' in name or Path(name).suffix:
            raise FileNotFoundError(
                f'CLIP {name!r}: no such folder. Shipped: {_shipped()}; from the hub: hf-hub:org/name'
            )
        raise ValueError(
            f'CLIP {name!r} is unknown to open_clip. Nearest: {_nearest(name)}; shipped: {_shipped()}'
        )
    tags = package.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f'CLIP {name!r} needs weights: give pretrained=FILE or one of its tags {tags}'
        )
    if pretrained not in tags and not Path(pretrained).is_file():
        kind = FileNotFoundError if '/' in pretrained or Path(pretrained).suffix else ValueError
        raise kind(
            f'pretrained={pretrained!r} is neither a file nor a tag of {name!r}; its tags: {tags}'
        )


def _shipped() -> list[str]:
    return [name for name in shipped_models() if (locate(name).path / CONFIG).is_file()]


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}'
