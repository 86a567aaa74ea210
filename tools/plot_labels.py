#!/usr/bin/env python
"""Quality over the number of labels: a picture and a table from several comparisons.

    for n in 5 20 50; do
      python tools/compare.py CONFIG… --tag $n-labels --cfg-options train_dataloader.dataset.num_labels=$n \
        train_dataloader.dataset.subset_seed={seed}
    done
    python tools/plot_labels.py work_dirs/compare/{5,20,50}-labels.json --out over_labels.png

Writes FILE.png and FILE.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.over_labels import read
from mmdiffrep.utils.files import write
from mmdiffrep.visualization.canvas import write_picture
from mmdiffrep.visualization.curves import draw_spreads


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'files', nargs='+', help='WORK_DIR/TAG.json of tools/compare.py, one or more a number of labels'
    )
    parser.add_argument(
        '--labels',
        nargs='+',
        type=int,
        metavar='N',
        help='of each file; default: the number in its tag (20-labels)',
    )
    parser.add_argument('--metric', help="default: the files' first, e.g. mIoU")
    parser.add_argument(
        '--names',
        nargs='+',
        help='what the configs are called, in the order of the files; default: what differs in their names',
    )
    parser.add_argument('--title', default='')
    parser.add_argument(
        '--out',
        default='over_labels.png',
        help='the picture; the table is written beside it as .md',
    )
    return parser


def plot(args: argparse.Namespace) -> None:
    if Path(args.out).suffix != '.png':
        raise ValueError(f'--out {args.out!r} does not fit; allowed: a name that ends in .png')
    found = read(args.files, args.labels, args.metric)
    called = found.named(args.names)
    picture = draw_spreads(
        found.curves(args.names), 'labelled training images', found.metric, args.title,
        hollow=[called[name] for name, pretrained in found.pretrained.items() if not pretrained],
        note='hollow: nothing pre-trained',
    )  # fmt: skip
    text = found.markdown(args.names)
    write(Path(args.out).with_suffix('.md'), text + '\n')
    print(f'{text}\n\n{write_picture(args.out, picture)}')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: plot(args))


if __name__ == '__main__':
    raise SystemExit(main())
