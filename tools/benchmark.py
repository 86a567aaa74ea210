#!/usr/bin/env python
"""This project beside the published procedures, on the same weights: time, memory, FLOPs, and whether the answers are the same.

    python tools/benchmark.py                                   # every scenario; Stable Diffusion at full size, random weights
    python tools/benchmark.py pair --size 768 --device cuda
    python tools/benchmark.py matching pixels head --rounds 5

Implementations take turns, each in a process of its own that is built once: A B A B. Published procedures are written plainly on untouched diffusers
(mmdiffrep/utils/bench/published.py). Seconds on a CPU are processor time, so that other work hardly counts; memory is the process's peak, with and
without what it had when the model was built. Writes benchmark.json, benchmark.md and benchmark.png into --out. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import mmdiffrep  # noqa: F401
from mmdiffrep.utils import cli
from mmdiffrep.utils.bench import study
from mmdiffrep.utils.bench.scenarios import SCENARIOS


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='scenarios:\n' + '\n'.join(f'  {name:15} {s.about}' for name, s in SCENARIOS.items()),
    )  # fmt: skip
    parser.add_argument('scenarios', nargs='*', metavar='SCENARIO', help='default: all but switches')
    parser.add_argument('--model', help="architecture, or a folder with configs; default: the scenario's, mostly sd21 or sd15")
    parser.add_argument('--size', type=int, help="side of the images; default: the scenario's, mostly 256")
    parser.add_argument('--batch', type=int, help="images at once: looks, training; default: the scenario's, mostly 1")
    parser.add_argument('--tap', default='up_blocks.1')
    parser.add_argument('--timestep', type=int, default=261)
    parser.add_argument('--draws', type=int, default=8, help='of noise')
    parser.add_argument('--looks', type=int, default=8, help='ours: noised images in the network at once')
    parser.add_argument('--points', type=int, default=20)
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--calls', type=int, default=1, help='timed ones of a process')
    parser.add_argument('--warm-up', type=int, default=0, help='calls before them; default 0, and 1 on an accelerator')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--stock', action='store_true', help='ResNet-50 and Swin-T, too, for scale')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', default='work_dirs/benchmark', metavar='FOLDER')
    return parser


def benchmark(args: argparse.Namespace) -> None:
    names = args.scenarios or [name for name, scenario in SCENARIOS.items() if scenario.usual]
    unknown = sorted(set(names) - set(SCENARIOS))
    if unknown:
        raise ValueError(f'scenarios {unknown} are unknown; allowed: {list(SCENARIOS)}')
    counts = {k: getattr(args, k) for k in ('size', 'batch', 'draws', 'looks', 'points', 'rounds', 'calls', 'threads')}
    if min(value for value in counts.values() if value is not None) < 1:
        raise ValueError(f'{counts} do not fit: give at least 1 of each')
    on_cpu = torch.device(args.device).type == 'cpu'
    keys = ('model', 'size', 'batch', 'tap', 'timestep', 'draws', 'looks', 'points', 'calls', 'threads', 'device')
    settings = {k: getattr(args, k) for k in keys} | dict(warm_up=args.warm_up or (0 if on_cpu else 1))
    peak = study.matrix_peak(args.device, args.threads)
    outcomes, differences, failures = study.run(names, settings, args.rounds, args.stock, lambda line: print(line, file=sys.stderr, flush=True))
    text = study.markdown(outcomes, differences, failures, settings, peak)
    print(text)
    print('\n' + ', '.join(map(str, study.write_all(Path(args.out), outcomes, text))))
    if failures:
        raise ValueError(f'scenarios {sorted(failures)} failed')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: benchmark(args))


if __name__ == '__main__':
    raise SystemExit(main())
