#!/usr/bin/env python
"""How cost grows with the work, and whether memory stays flat.

    python tools/growth.py                                  # every axis: image size, batch, taps, vocabulary, entries of the cache
    python tools/growth.py size --points 256 512 --model sd21 --device cuda
    python tools/growth.py cache --points 100 1000
    python tools/growth.py steady --iterations 2000         # memory over 2000 iterations of training, extraction and inference each

Every point is measured in a process of its own. Seconds on a CPU are processor time, so that other work hardly counts; memory is the process's peak while it
works. Beside the measured times: the fit of the order of growth that is expected. Random weights, full size; nothing is fetched. Writes growth.json,
growth.md and a picture for each axis into --out.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import mmdiffrep  # noqa: F401
from mmdiffrep.utils import cli
from mmdiffrep.utils.bench.growth import AXES
from mmdiffrep.utils.bench.steady import KINDS
from mmdiffrep.utils.comparison.memory import resident
from mmdiffrep.utils.files import write
from mmdiffrep.utils.taps import format_table
from mmdiffrep.visualization import write_picture
from mmdiffrep.visualization.growth import draw_growth, draw_steady

MIB = 2**20


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='axes:\n' + '\n'.join(f'  {name:12} {axis.about}' for name, axis in AXES.items()) + '\n  steady       memory over many iterations',
    )  # fmt: skip
    parser.add_argument('axes', nargs='*', metavar='AXIS', help='default: all but steady')
    parser.add_argument('--points', type=int, nargs='+', help="numbers of the axis; default: its usual ones")
    parser.add_argument('--model', default='sd21', help='architecture; default sd21')
    parser.add_argument('--tap', default='up_blocks.1')
    parser.add_argument('--size', type=int, default=256, help='of images, where it does not grow')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--iterations', type=int, default=2000, help='steady: of each kind')
    parser.add_argument('--folder', help='cache: where entries are written and deleted; default: the system\'s')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--out', default='work_dirs/growth', metavar='FOLDER')
    return parser


def fit(numbers: list[int], seconds: list[float], powers: tuple[float, ...]) -> list[float]:
    """Factors, none below 0, of the sum of powers of the number that fits measured times best, each point weighed by its own size."""
    from scipy.optimize import nnls

    terms = np.array([[n**p for p in powers] for n in numbers], dtype=float)
    scale = 1 / np.array(seconds)
    return nnls(terms * scale[:, None], np.ones(len(numbers)))[0].tolist()


def measured(axis: str, number: int, args: argparse.Namespace) -> dict[str, Any]:
    settings = dict(
        axis=axis, number=number, model=args.model, tap=args.tap, size=args.size, threads=args.threads, device=args.device, folder=args.folder
    )
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, 'settings.json')
        asked.write_text(json.dumps(settings))
        done = subprocess.run([sys.executable, '-m', 'mmdiffrep.utils.bench.growth', str(asked)], capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f'ended with {done.returncode}: killed, as when memory runs out?']
        raise ValueError(f'{axis}, {number}: {lines[-1]}')
    return dict(number=number, **json.loads(done.stdout.splitlines()[-1]))


def grow(name: str, args: argparse.Namespace, out: Path) -> list[str]:
    axis = AXES[name]
    points = args.points or list(axis.points)
    found = []
    for number in tqdm(points, name, unit='point'):
        found.append(measured(name, number, args))
    parts = list(found[0]['seconds'])
    powers = axis.expected
    lines, fits = [], {}
    for part in parts:
        values = [one['seconds'][part] for one in found]
        fits[part] = (values, fit(points, [max(v, 1e-6) for v in values], powers))
        terms = ' + '.join(f'{factor:.3g} · n^{power:g}' for factor, power in zip(fits[part][1], powers) if factor)
        lines.append(f'- {name}, {part}: expected order n^{powers[-1]:g}, measured {terms or "0"} s')
    rows = [
        [one['number'], *(f'{values[k]:.3g}' for values, _ in fits.values()), f'{one["peak"] / 2**30:.2f}'] for k, one in enumerate(found)
    ]
    table = format_table([axis.unit, *(f'{label}, s' for label in fits), 'peak GiB'], rows, left=())
    memory = [one['peak'] for one in found]
    write_picture(out / f'growth_{name}.png', draw_growth(points, fits, powers, memory, axis.unit, axis.about))
    write(out / f'growth_{name}.json', json.dumps(found, indent=1))
    return [f'**{name}**: {axis.about}', '', table, '', *lines, '']


def steady(args: argparse.Namespace, out: Path) -> list[str]:
    torch.set_num_threads(args.threads)
    traces: dict[str, list[tuple[int, int]]] = {}
    lines = []
    for name, make in KINDS.items():
        torch.manual_seed(0)
        work, trace = make(), []
        every = max(1, args.iterations // 100)
        for number in tqdm(range(args.iterations), name, unit='iteration'):
            next(work)
            if number % every == 0 or number == args.iterations - 1:
                gc.collect()
                trace.append((number, resident()))
        traces[name] = trace
        work.close()
        tenth = [memory for number, memory in trace if number >= args.iterations // 10]
        slope = np.polyfit([n for n, _ in trace if n >= args.iterations // 10], tenth, 1)[0] if len(tenth) > 1 else 0.0
        lines.append(
            f'- {name}: {tenth[0] / MIB:.0f} MiB after a tenth, {tenth[-1] / MIB:.0f} MiB at the end, at most {max(tenth) / MIB:.0f} MiB; '
            f'{slope * 1000 / MIB:+.2f} MiB in 1000 iterations'
        )
    write_picture(out / 'steady.png', draw_steady(traces))
    write(out / 'steady.json', json.dumps(traces))
    return [f'**steady**: memory of the process over {args.iterations} iterations', '', *lines, '']


def run(args: argparse.Namespace) -> None:
    names = args.axes or list(AXES)
    unknown = sorted(set(names) - {*AXES, 'steady'})
    if unknown:
        raise ValueError(f'axes {unknown} are unknown; allowed: {[*AXES, "steady"]}')
    if min(args.points or [1]) < 1 or args.threads < 1 or args.iterations < 1:
        raise ValueError(f'--points {args.points} --threads {args.threads} --iterations {args.iterations} do not fit: give at least 1 of each')
    out, begin = Path(args.out), time.perf_counter()
    text = []
    for name in names:
        text += steady(args, out) if name == 'steady' else grow(name, args, out)
        write(out / 'growth.md', '\n'.join(text))
    print('\n'.join(text))
    print(f'{args.threads} thread(s), device {args.device}, torch {torch.__version__}, {time.perf_counter() - begin:.0f} s; pictures in {out}')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: run(args))


if __name__ == '__main__':
    raise SystemExit(main())
