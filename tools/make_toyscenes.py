#!/usr/bin/env python
"""Draw the ToyScenes data set: small pictures with semantic, panoptic, instance, caption, label and keypoint annotations."""

from __future__ import annotations

import argparse
import sys

from mmdiffrep.datasets.toyscenes.writer import write_toyscenes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out', nargs='?', default='data/toyscenes', help='folder to write')
    parser.add_argument('--train', type=int, default=2000, help='pictures to train on')
    parser.add_argument('--val', type=int, default=200, help='pictures to validate on')
    parser.add_argument(
        '--val-heldout', type=int, default=200,
        help='pictures in which half of the things are colour–shape combinations that the others never show',
    )  # fmt: skip
    parser.add_argument('--pairs', type=int, default=100, help='keypoint pairs')
    parser.add_argument(
        '--size', type=int, nargs='+', default=[128], help='side, or height and width, in pixels'
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=2, help='processes that draw')
    parser.add_argument('--overwrite', action='store_true', help='replace what is in the folder')
    args = parser.parse_args()
    size = (args.size[0], args.size[-1])
    counts = dict(train=args.train, val=args.val, val_heldout=args.val_heldout)
    try:
        out = write_toyscenes(
            args.out, counts, size, args.seed, args.pairs, args.workers, args.overwrite
        )
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'ToyScenes: {sum(counts.values())} pictures and {args.pairs} pairs in {out}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
