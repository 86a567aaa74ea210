#!/usr/bin/env python
"""Train or test several configs over several seeds under equal conditions and report quality beside cost.

The table gives metric ± deviation, parameters, FLOPs, images a second, peak memory, and what each config was pre-trained on;
below it stands where the comparison is unfair. Written to WORK_DIR/TAG.md, .csv, .json and .png (quality over cost).

Runs that are finished are not repeated, so that an interrupted comparison goes on where it was; a run is repeated when its
config, one of its bases, an option or the checkpoint has changed.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep import compat
from mmdiffrep.utils.comparison import matching, picture, report
from mmdiffrep.utils.comparison.entries import make_entries, usual_metric
from mmdiffrep.utils.comparison.runs import RunError
from mmdiffrep.utils.comparison.study import Study, study

TOOLS = Path(__file__).resolve().parent


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='configs to compare')
    parser.add_argument(
        '--test', nargs='+', metavar='CHECKPOINT',
        help='only evaluate: a checkpoint for each config, in their order; {seed} stands for the seed',
    )  # fmt: skip
    parser.add_argument(
        '--seeds', type=int, help='seeds 0 … N-1 (default 3; with --test 1)'
    )
    parser.add_argument(
        '--metric', nargs='+',
        help="names in the validation log, e.g. mIoU aAcc, or panoptic/PQ; the first one orders the table. Default: the first config's "
        'evaluator tells: mIoU, accuracy/top1, panoptic/PQ …',
    )  # fmt: skip
    parser.add_argument('--work-dir', default='work_dirs/compare')
    parser.add_argument('--tag', default='', help='names this budget, e.g. 20-labels')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='changes to every config; {seed} stands for the seed',
    )  # fmt: skip
    parser.add_argument(
        '--match', nargs='+', default=[], choices=sorted(matching.UNITS),
        help='add a table at equal cost of training, read from the validation curves',
    )  # fmt: skip
    parser.add_argument(
        '--cost', default='flops', choices=sorted(picture.AXES),
        help="the picture's horizontal axis: FLOPs, parameters, time or memory of an image's inference",
    )  # fmt: skip
    parser.add_argument(
        '--size', type=int, nargs=2, metavar=('H', 'W'),
        help="image size at which the cost is measured; default: the config's",
    )  # fmt: skip
    parser.add_argument(
        '--batch-size', type=int, default=1,
        help='images at once, where images/s and memory are measured (default 1)',
    )  # fmt: skip
    return parser


def prepare(args: argparse.Namespace) -> Study:
    """What the command line asks for. Raises: ValueError, FileNotFoundError with the cure."""
    compat.check_environment()
    seeds = (1 if args.test else 3) if args.seeds is None else args.seeds
    for name, values in (('--size', args.size or [1]), ('--batch-size', [args.batch_size])):
        if min(values) < 1:
            raise ValueError(f'{name} {" ".join(map(str, values))} does not fit: give whole numbers, at least 1')
    if args.test and args.match:
        raise ValueError('--match reads validation curves of trainings: leave it out with --test')
    entries = make_entries(args.configs, args.cfg_options, args.test, seeds)
    return Study(
        entries=entries,
        seeds=seeds,
        metrics=args.metric or [usual_metric(entries[0].config())],
        work_dir=Path(args.work_dir),
        tools=TOOLS,
        tag=args.tag,
        match=args.match,
        cost=args.cost,
        batch_size=args.batch_size,
        size=tuple(args.size) if args.size else None,
    )


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        comparison = study(prepare(args), say=partial(print, flush=True))
    except (ValueError, FileNotFoundError, RunError, RuntimeError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    print(f'\n{report.markdown(comparison)}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
