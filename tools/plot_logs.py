#!/usr/bin/env python
"""Draw what runs logged over their steps: a loss or a metric, a curve a run.

    python tools/plot_logs.py work_dirs/edm_* --key loss --out losses.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.logs import curve
from mmdiffrep.visualization import write_picture
from mmdiffrep.visualization.curves import draw_curves


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', help='work folders')
    parser.add_argument('--key', default='loss', help="what is drawn: 'loss', 'mIoU', 'panoptic/PQ', …; default loss")
    parser.add_argument('--out', default='curves.png', help='PNG or JPEG')
    parser.add_argument('--linear', action='store_true', help='a linear vertical axis; default: logarithmic')
    return parser


def draw(args: argparse.Namespace) -> None:
    curves = {Path(run).name: curve(Path(run), args.key) for run in args.runs}
    print(write_picture(args.out, draw_curves(curves, args.key, logarithmic=not args.linear)))


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: draw(args))


if __name__ == '__main__':
    raise SystemExit(main())
