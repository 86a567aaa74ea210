#!/usr/bin/env python
"""List a config's taps with channels, stride, size and order, and what its adapter makes of them."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from typing import Any

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.utils import cli
from mmdiffrep.utils.taps import find_backbone, format_table, tap_rows, uncut_denoiser


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file with a mmdiffrep.DiffusionBackbone')
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'),
        help="image size; default: the config's crop_size, else what the network was trained on",
    )  # fmt: skip
    parser.add_argument(
        '--all', action='store_true', help='also the taps inside of resnets and attentions'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.DictAction,
        metavar='KEY=VALUE',
        help='change the config',
    )
    return parser


def report(
    cfg: Any,
    size: tuple[int, int] | None = None,
    everything: bool = False,
    name: str = 'the config',
) -> str:
    """The tables as text.

    Raises:
        ValueError, FileNotFoundError: the config has no diffusion backbone, or it cannot be built.
    """
    backbone = find_backbone(cfg)
    denoiser = uncut_denoiser(backbone)
    size = size or _default_size(cfg, denoiser)
    if min(size) < 1:
        raise ValueError(f'--size {size[0]} {size[1]}: both sides must be positive')
    rows = tap_rows(denoiser, size, backbone['taps'], everything)
    lines = [
        f'{backbone["denoiser"]["type"]} of {name}: {denoiser.fingerprint}',
        f'{sum(p.numel() for p in denoiser.network.parameters()):,} weights when whole; images {size[0]}×{size[1]}'
        f'{_padding(denoiser, size)}; * marks the taps in use',
        '',
        format_table(
            ['', 'tap', 'channels', 'stride', 'size', 'order', 'in papers'],
            [
                (
                    '*' if row.used else '', row.info.tap, row.info.channels, f'{row.info.stride:g}',
                    '×'.join(map(str, row.size)), row.info.order, ' '.join(row.aliases),
                )
                for row in rows
            ],
            left=(0, 1, 6),
        ),
    ]  # fmt: skip
    return '\n'.join([*lines, '', adapter_report(backbone, size)])


def adapter_report(backbone: Mapping[str, Any], size: tuple[int, int]) -> str:
    """What the backbone gives to the head: channels, strides, sizes."""
    from mmdiffrep.models.adapters.base import map_size
    from mmdiffrep.registry import MODELS

    built = MODELS.build(dict(backbone))
    kind = 'the raw maps (no adapter)' if built.adapter is None else type(built.adapter).__name__
    trained = sum(p.numel() for p in built.parameters() if p.requires_grad)
    fed = [f'{info.tap} ({info.channels} at stride {info.stride:g})' for info in built.tap_infos]
    maps = [
        (k, channels, f'{stride:g}', '×'.join(map(str, map_size(size, stride))))
        for k, (channels, stride) in enumerate(zip(built.out_channels, built.out_strides))
    ]
    times = ', '.join(f'{t:g}' for t in built.timesteps)
    return '\n'.join(
        [
            f'{kind} at timesteps {times}, {trained:,} trained weights in the backbone, from',
            *(f'  {text}' for text in fed),
            '',
            format_table(['map', 'channels', 'stride', 'size'], maps, left=()),
            '',
            f'for the next part of the model: in_channels={built.out_channels}',
        ]
    )


def _default_size(cfg: Any, denoiser: Any) -> tuple[int, int]:
    size = cfg.get('crop_size')
    if size is None:
        size = getattr(denoiser.network.config, 'sample_size', None) or 256
    size = (size, size) if isinstance(size, int) else size
    return tuple(size)


def _padding(denoiser: Any, size: tuple[int, int]) -> str:
    padded = [-(-side // denoiser.divisor) * denoiser.divisor for side in size]
    return '' if padded == list(size) else f' (padded to {padded[0]}×{padded[1]} inside)'


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    warnings.filterwarnings('ignore', category=FutureWarning)

    def show() -> None:
        cfg = cli.Config.fromfile(cli.existing_config(args.config))
        if args.cfg_options:
            cfg.merge_from_dict(args.cfg_options)
        print(report(cfg, tuple(args.size) if args.size else None, args.all, args.config))

    return cli.reporting(show)


if __name__ == '__main__':
    raise SystemExit(main())
