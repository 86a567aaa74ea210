"""Reading a config's denoiser, and its taps as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..diffusion.denoiser import Denoiser
from ..diffusion.taps import TapInfo

# outputs of blocks, resnets, attentions and resamplers; of resnets the inputs too
SENSIBLE = re.compile(
    r'conv_in|mid_block|(down_blocks|up_blocks)\.\d+(\.(downsamplers|upsamplers)\.\d+)?'
    r'|(mid_block|(down|up)_blocks\.\d+)\.(attentions\.\d+|resnets\.\d+(:in)?)'
)


@dataclass(frozen=True)
class TapRow:
    """A tap as the table shows it."""

    info: TapInfo
    size: tuple[int, int]  # (h, w) of the map that DiffusionBackbone gives
    aliases: tuple[str, ...]
    used: bool


def find_backbone(config: Any) -> Mapping[str, Any]:
    """The DiffusionBackbone within a config.

    Raises:
        ValueError: there is none.
    """
    found = _search(config.get('model', config))
    if found is None:
        kind = config.get('model', {}).get('backbone', {}).get('type')
        raise ValueError(
            f'the config has no mmdiffrep.DiffusionBackbone (its model.backbone is {kind!r}), so it has no taps'
        )
    return found


def _search(node: Any) -> Mapping[str, Any] | None:
    if isinstance(node, Mapping):
        if str(node.get('type', '')).rpartition('.')[2] == 'DiffusionBackbone':
            return node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        return next((found for item in node if (found := _search(item)) is not None), None)
    return None


def uncut_denoiser(backbone: Mapping[str, Any]) -> Denoiser:
    """The backbone's denoiser with all of its network, also what lies behind the last tap."""
    from ..registry import MODELS

    missing = [key for key in ('denoiser', 'taps') if not backbone.get(key)]
    if missing:
        raise ValueError(
            f"the config's DiffusionBackbone has no {' and no '.join(missing)}; it has {sorted(backbone)}"
        )
    return MODELS.build(dict(backbone['denoiser']))


def sensible_taps(names: Sequence[str]) -> list[str]:
    """Those of ``names`` that end a block, a resnet, an attention or a resampler, or begin a resnet."""
    return [name for name in names if SENSIBLE.fullmatch(name)]


def paper_aliases(denoiser: Denoiser) -> dict[str, list[str]]:
    """Tap -> its names in papers (an input's first one); empty for networks that are not built like the papers'."""
    from ..diffusion.aliases import list_aliases

    try:
        aliases = list_aliases(getattr(denoiser, 'alias_config', None) or {'up_block_types': ['']})
    except ValueError:
        return {}
    named: dict[str, list[str]] = {}
    for alias, tap in aliases.items():
        named.setdefault(tap, []).append(alias)
        entry = str(denoiser.tap(f'{alias}:in'))
        named.setdefault(entry, [f'{alias}:in'])
    return named


def tap_rows(
    denoiser: Denoiser,
    image_size: tuple[int, int],
    used: Sequence[str] = (),
    everything: bool = False,
) -> list[TapRow]:
    """The taps of a denoiser at an image size (H, W), in the order of execution.

    An image whose sides are no multiples of the denoiser's divisor is padded, as DiffusionBackbone does; the sizes are those
    of the maps that cover the image.

    Args:
        used: taps or paper aliases to mark; they are listed in any case.
        everything: also the taps inside of resnets and attentions.
    """
    from ..models.adapters.base import map_size

    padded = tuple(-(-side // denoiser.divisor) * denoiser.divisor for side in image_size)
    infos = denoiser.tap_info(padded)
    marked = {str(denoiser.tap(name)) for name in used}
    wanted = set(infos) if everything else set(sensible_taps(list(infos))) | marked
    names = paper_aliases(denoiser)
    return [
        TapRow(info, map_size(image_size, info.stride), tuple(names.get(tap, ())), tap in marked)
        for tap, info in infos.items()
        if tap in wanted
    ]


def format_table(
    head: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[int] = (0,)
) -> str:
    """Columns under a head; those in ``left`` flush left, numbers flush right."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[k]) for row in cells) for k in range(len(head))]
    lines = [
        '  '.join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in cells
    ]
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:]])
