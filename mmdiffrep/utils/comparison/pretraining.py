"""What a config's networks were trained on before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdiffrep.diffusion.loading import SHIPPED

SCRATCH = 'from scratch'
# what checkpoints of these names were trained on
KNOWN_DATA = {
    r'256x256_diffusion|64x64_diffusion|128x128_diffusion|512x512_diffusion|DiT-XL': 'ImageNet',
    r'in2[12]k': 'ImageNet-21k',
    r'open-mmlab://resne|torchvision://|in1k|swin_tiny_patch4_window7_224_2022': 'ImageNet',
    r'ddpm-(ema-)?(cat|church|bedroom)|lsun': 'LSUN',
    r'ddpm-cifar10': 'CIFAR-10',
    r'ffhq': 'FFHQ',
    r'ddpm-(ema-)?celebahq': 'CelebA-HQ',
    r'stable-diffusion': 'LAION',
}


@dataclass(frozen=True)
class Start:
    """Where some of a model's weights come from.

    Attributes:
        weights: a checkpoint's name; None: drawn at random.
        state: ``'frozen'``, ``'partly frozen'``, or ``''`` (trained on).
    """

    weights: str | None
    state: str = ''

    def __str__(self) -> str:
        data = [d for name, d in KNOWN_DATA.items() if re.search(name, self.weights or '')]
        notes = ', '.join([*data[:1], *([self.state] if self.state else [])])
        name = self.weights or 'random weights'
        if re.match(r'https?://', name):
            name = name.rpartition('/')[2]
        return name + (f' ({notes})' if notes else '')


def starts(cfg: Any) -> list[Start]:
    """What a config loads before it trains, and the denoisers whose weights it draws; empty: from scratch."""
    found = list(_visit(cfg.get('model') or {}))
    if cfg.get('load_from'):
        found.append(Start(str(cfg['load_from'])))
    return list(dict.fromkeys(found))


def describe(cfg: Any) -> str:
    """The starts in words."""
    return '; '.join(map(str, starts(cfg))) or SCRATCH


def is_pretrained(cfg: Any) -> bool:
    return any(start.weights is not None for start in starts(cfg))


def card(weights: str) -> str | None:
    """What stands beside shipped or local weights about them: the first paragraph of their folder's README.md."""
    shipped, path = weights.startswith('mmdiffrep/'), Path(weights)
    folder = SHIPPED / path.name if shipped else path
    file = (folder if folder.is_dir() else folder.parent) / 'README.md'
    if not folder.exists() or not file.is_file():
        return None
    text = re.sub(r'\A---\n.*?\n---\n', '', file.read_text(encoding='utf-8'), flags=re.DOTALL)
    for paragraph in text.split('\n\n'):
        lines = [line for line in paragraph.strip().splitlines() if not line.startswith('#')]
        if lines and not lines[0].startswith('-'):
            return ' '.join(lines)
    return None


def _visit(node: Any) -> Iterator[Start]:
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _visit(item)
    if not isinstance(node, Mapping):
        return
    skipped = {'init_cfg'}
    if isinstance(node.get('denoiser'), Mapping):
        yield _denoiser(node)
        skipped |= {'denoiser', 'pretrained'}  # DiffusionBackbone does not use its own `pretrained`
    elif isinstance(node.get('backbone'), Mapping) and 'denoiser' in node['backbone']:
        skipped.add('pretrained')  # mmseg hands it down
    pretrained = node.get('pretrained')
    if 'pretrained' not in skipped and pretrained:
        own = node.get('model_name') or f"{node.get('type')}'s own"
        yield Start(pretrained if isinstance(pretrained, str) else str(own), _frozen_stages(node))
    inits = node.get('init_cfg')
    for init in inits if isinstance(inits, (list, tuple)) else [inits]:
        if isinstance(init, Mapping) and str(init.get('type')).endswith('Pretrained'):
            yield Start(str(init.get('checkpoint')), _frozen_stages(node))
    for key, value in node.items():
        if key not in skipped:
            yield from _visit(value)


def _denoiser(backbone: Mapping[str, Any]) -> Start:
    denoiser, trainable = backbone['denoiser'], backbone.get('trainable', False)
    random = denoiser.get('random_seed') is not None or not denoiser.get('pretrained')
    state = 'frozen' if not trainable else '' if trainable is True else 'partly frozen'
    return Start(None if random else str(denoiser['pretrained']), state)


def _frozen_stages(backbone: Mapping[str, Any]) -> str:
    """Of a stock backbone: ``frozen_stages`` counts from its stem (0); -1 is none."""
    inner = backbone.get('backbone')
    if isinstance(inner, Mapping):  # mmseg's model.pretrained is its backbone's
        return _frozen_stages(inner)
    frozen = backbone.get('frozen_stages', -1)
    if not isinstance(frozen, int) or frozen < 0:
        return ''
    return 'frozen' if frozen >= backbone.get('num_stages', 4) else 'partly frozen'
