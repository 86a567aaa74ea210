#!/usr/bin/env python
"""Turn the data sets of DDPM-Seg (Baranchuk et al. 2022) into images and masks as PNGs of 256×256.

They come as datasets.tar.gz (47 MB) from https://github.com/yandex-research/ddpm-segmentation; unpacked:

    python tools/convert_ddpm_seg.py datasets                     every set that is there, into data/ddpm-seg/NAME
    python tools/convert_ddpm_seg.py datasets --sets bedroom-28

data/ddpm-seg/bedroom-28/{images,labels}/{train,test}/*.png is what configs/_base_/datasets/ddpm-seg_bedroom-28-256x256.py reads; where
the archive has labelled images that were sampled from the diffusion model, they become …/sampled/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdiffrep.datasets.ddpm_seg import SETS, convert
from mmdiffrep.engine.saving import replace_folder
from mmdiffrep.utils import cli


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', help='the unpacked folder: bedroom_28/, ffhq_34/, …')
    parser.add_argument('--sets', nargs='+', choices=list(SETS), help='default: all that are there')
    parser.add_argument('--out', default='data/ddpm-seg', help='default data/ddpm-seg')
    parser.add_argument('--size', type=int, default=256, help='side in pixels; default 256')
    parser.add_argument(
        '--overwrite', action='store_true', help='replace sets that are there already'
    )
    return parser


def run(args: argparse.Namespace) -> None:
    source, out = Path(args.source), Path(args.out)
    if args.size < 1:
        raise ValueError(f'--size {args.size} does not fit; allowed: at least 1')
    folders = {name: source / name.replace('-', '_') for name in args.sets or SETS}
    names = [name for name, folder in folders.items() if args.sets or folder.is_dir()]
    if not names:
        raise FileNotFoundError(
            f'{source} has none of {[folder.name for folder in folders.values()]}: give the folder that the archive was unpacked into'
        )
    there = [str(out / name) for name in names if (out / name).exists()]
    if there and not args.overwrite:
        raise ValueError(
            f'{", ".join(there)} is there already: give --overwrite to replace it, or another --out'
        )
    for name in names:
        # appears when it is complete
        replace_folder(
            out / name, lambda new, name=name: _convert(folders[name], name, new, args.size)
        )
        print(out / name)


def _convert(folder: Path, name: str, new: Path, size: int) -> None:
    convert(folder, name, new, size, say=lambda line: print(f'{name} {line}', flush=True))


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: run(args))


if __name__ == '__main__':
    raise SystemExit(main())
