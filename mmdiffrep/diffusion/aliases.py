"""Paper aliases: papers' names for U-Net blocks, as taps of diffusers' ``UNet2DModel``.

guided-diffusion (ADM) numbers the blocks of the way down and of the way up from 0. A block is a
ResBlock with its attention, if it has one; on the way down ``conv_in`` and every downsampler are
blocks of their own; on the way up an upsampler belongs to the block before it. For a network with L
levels and n ResBlocks a level (ADM-256: L = 6, n = 2):

==================  ======================================================  ==================
alias               meaning                                                 numbers
==================  ======================================================  ==================
``adm:in.K``        input block K, from 0 (0 is ``conv_in``)                0 … L(n+1) − 1
``adm:mid``         middle block
``adm:out.K``       output block K, from 0, after its upsampler             0 … L(n+1) − 1
``ddpmseg:K``       DDPM-Seg's block K: ``adm:out.K``                       0 … L(n+1) − 1
``dift:block.K``    DIFT's block K of ADM: ``adm:out.K``                    0 … L(n+1) − 1
``gdc:bN``          GDC, DifFormer, DifFeed: input blocks from 1, then      1 … 2L(n+1) + 1
                    middle, output blocks (ADM-256: 1–18, 19, 20–37)
``ddae:out_k``      DDAE's k-th ResBlock of the way up, from 1, before      1 … L(n+1)
                    any upsampler
``dift:up.i``       DIFT's ``up_blocks[i]``, after its upsampler            0 … L − 1
==================  ======================================================  ==================

Each names the block's output; ``adm:out.5:in`` is its input (on the way up: after the skip's
concatenation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FAMILIES = ('adm', 'ddpmseg', 'gdc', 'ddae', 'dift')

# UNet2DModel's own defaults, for configs that leave them out
_DOWN = ('DownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D', 'AttnDownBlock2D')
_UP = ('AttnUpBlock2D', 'AttnUpBlock2D', 'AttnUpBlock2D', 'UpBlock2D')
# Block types built from ResBlocks, attentions and one resampler, and whether they have attentions
_ATTENTION = {
    'DownBlock2D': False,
    'ResnetDownsampleBlock2D': False,
    'AttnDownBlock2D': True,
    'UpBlock2D': False,
    'ResnetUpsampleBlock2D': False,
    'AttnUpBlock2D': True,
}


@dataclass(frozen=True)
class Block:
    """One guided-diffusion block, with its parts in the order of execution."""

    name: str  # 'input_blocks.3', 'middle_block', 'output_blocks.5'
    level: int  # 0 is the finest
    parts: tuple[
        tuple[str, str], ...
    ]  # (kind, diffusers path); kind: 'conv', 'res', 'attn', 'resample'

    @property
    def input(self) -> str:
        return f'{self.parts[0][1]}:in'

    @property
    def output(self) -> str:
        return self.parts[-1][1]

    @property
    def before_resampling(self) -> str:
        return next(path for kind, path in reversed(self.parts) if kind != 'resample')


def adm_blocks(unet_config: Mapping[str, Any]) -> list[Block]:
    """A ``UNet2DModel`` config as guided-diffusion's blocks, in the order of execution.

    Raises:
        ValueError: a block type that is not made of ResBlocks, attentions and one resampler.
    """
    down = [_has_attention(kind) for kind in unet_config.get('down_block_types', _DOWN)]
    up = [_has_attention(kind) for kind in unet_config.get('up_block_types', _UP)]
    layers = unet_config.get('layers_per_block', 2)
    levels = len(down)

    inputs: list[tuple[int, tuple[tuple[str, str], ...]]] = [(0, (('conv', 'conv_in'),))]
    for level, attention in enumerate(down):
        path = f'down_blocks.{level}'
        inputs += [(level, _layer(path, j, attention)) for j in range(layers)]
        if level < levels - 1:
            inputs.append((level, (('resample', f'{path}.downsamplers.0'),)))

    outputs = []
    for i, attention in enumerate(up):
        path = f'up_blocks.{i}'
        level = levels - 1 - i
        outputs += [(level, _layer(path, j, attention)) for j in range(layers + 1)]
        if level > 0:
            outputs[-1] = (level, (*outputs[-1][1], ('resample', f'{path}.upsamplers.0')))

    blocks = [Block(f'input_blocks.{k}', *block) for k, block in enumerate(inputs)]
    blocks += _middle(unet_config, levels - 1)
    return blocks + [Block(f'output_blocks.{k}', *block) for k, block in enumerate(outputs)]


def _has_attention(kind: str) -> bool:
    name = kind.removeprefix('UNetRes')
    if name not in _ATTENTION:
        raise ValueError(
            f'paper aliases number the blocks of ADM-like networks; block type {kind!r} is none of '
            f'{sorted(_ATTENTION)}. Name the tap by its module path instead (tools/list_taps.py '
            'prints them)'
        )
    return _ATTENTION[name]


def _layer(path: str, j: int, attention: bool) -> tuple[tuple[str, str], ...]:
    res = ('res', f'{path}.resnets.{j}')
    return (res, ('attn', f'{path}.attentions.{j}')) if attention else (res,)


def _middle(unet_config: Mapping[str, Any], level: int) -> list[Block]:
    if unet_config.get('mid_block_type', 'UNetMidBlock2D') is None:
        return []
    parts = [('res', 'mid_block.resnets.0'), ('res', 'mid_block.resnets.1')]
    if unet_config.get('add_attention', True):
        parts.insert(1, ('attn', 'mid_block.attentions.0'))
    return [Block('middle_block', level, tuple(parts))]


def _adm_aliases(unet_config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """``'adm:…'`` -> (input tap, output tap), in the order of execution."""
    aliases = {}
    for block in adm_blocks(unet_config):
        if block.name == 'middle_block':
            aliases['adm:mid'] = ('mid_block:in', 'mid_block')
        else:
            side, number = block.name.split('_blocks.')
            aliases[f'adm:{side.removesuffix("put")}.{number}'] = (block.input, block.output)
    return aliases


def _sided_aliases(unet_config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Every alias of the network -> (input tap, output tap)."""
    adm = _adm_aliases(unet_config)
    ups = [block for block in adm_blocks(unet_config) if block.name.startswith('output_blocks')]
    aliases = dict(adm)
    for k, block in enumerate(ups):
        aliases[f'ddpmseg:{k}'] = aliases[f'dift:block.{k}'] = (block.input, block.output)
    inputs = len(adm) - len(ups) - ('adm:mid' in adm)
    for k, taps in enumerate(adm.values()):
        # the middle block keeps its number where a network has none
        gap = 'adm:mid' not in adm and k >= inputs
        aliases[f'gdc:b{k + 1 + gap}'] = taps
    for k, block in enumerate(ups):
        aliases[f'ddae:out_{k + 1}'] = (block.input, block.before_resampling)
    for i in range(len(unet_config.get('up_block_types', _UP))):
        first = next(block for block in ups if block.input.startswith(f'up_blocks.{i}.'))
        aliases[f'dift:up.{i}'] = (first.input, f'up_blocks.{i}')
    return aliases


def list_aliases(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """Every paper alias of a network -> the tap of that block's output."""
    return {name: output for name, (_, output) in _sided_aliases(unet_config).items()}


def is_alias(name: str) -> bool:
    """Whether a name begins with a paper's prefix."""
    return name.partition(':')[0] in FAMILIES


def resolve_alias(name: str, unet_config: Mapping[str, Any]) -> str:
    """The tap that a paper alias names in a network; names without a paper's prefix pass unchanged.

    >>> config = dict(down_block_types=['DownBlock2D'] * 2, up_block_types=['UpBlock2D'] * 2)
    >>> resolve_alias('adm:out.1', config), resolve_alias('adm:out.1:in', config)
    ('up_blocks.0.resnets.1', 'up_blocks.0.resnets.1:in')

    Raises:
        ValueError: the network has no such block.
    """
    if not is_alias(name):
        return name
    aliases = _sided_aliases(unet_config)
    base, _, side = name.rpartition(':')
    if side not in ('in', 'out') or base in FAMILIES:
        base, side = name, 'out'
    if base not in aliases:
        valid = _summary([alias for alias in aliases if alias.split(':')[0] == name.split(':')[0]])
        raise ValueError(
            f'paper alias {name!r}: this network has no such block. Valid here: {valid}; '
            "each may end in ':in' for the block's input"
        )
    return aliases[base][side == 'out']


def _summary(aliases: list[str]) -> str:
    """``['adm:in.0', 'adm:in.1', 'adm:mid']`` -> ``'adm:in.0 … adm:in.1, adm:mid'``."""
    groups: dict[str, list[str]] = {}
    for alias in aliases:
        groups.setdefault(re.sub(r'\d+$', '', alias), []).append(alias)
    return ', '.join(
        names[0] if len(names) == 1 else f'{names[0]} … {names[-1]}' for names in groups.values()
    )
