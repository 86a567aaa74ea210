#!/usr/bin/env python
"""Make a small folder of weights out of a training's checkpoint: what was trained, as .safetensors, and a card.

python tools/export_weights.py work_dirs/CONFIG --config configs/…/CONFIG.py --out weights/my-model
python tools/test.py configs/…/CONFIG.py weights/my-model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.apis.export import export_weights
from mmdiffrep.engine.saving import DTYPES
from mmdiffrep.utils import cli


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help="a training's folder, or a file")
    parser.add_argument('--config', required=True, help='config that it was trained with')
    parser.add_argument('--out', required=True, metavar='FOLDER', help='folder to write')
    parser.add_argument('--name', help="of the model; default: the folder's")
    parser.add_argument('--dtype', default='fp16', choices=sorted(DTYPES))
    card = parser.add_argument_group('the card')
    card.add_argument('--license', default='apache-2.0')
    card.add_argument('--description', default='', help='what the model is and what it knows')
    card.add_argument('--command', help='that trained it; default: tools/train.py with the config')
    card.add_argument('--data', help="that it was trained on; default: the config's")
    card.add_argument('--note', action='append', default=[], help='a line more; may be repeated')
    return parser


def export(args: argparse.Namespace) -> None:
    folder = export_weights(
        args.checkpoint,
        args.config,
        args.out,
        name=args.name,
        dtype=args.dtype,
        licence=args.license,
        description=args.description,
        command=args.command,
        data=args.data,
        notes=args.note,
    )
    for file in sorted(Path(folder).iterdir()):
        print(f'{file}  {file.stat().st_size / 1e6:.2f} MB')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: export(args))


if __name__ == '__main__':
    raise SystemExit(main())
