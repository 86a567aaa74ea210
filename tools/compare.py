#!/usr/bin/env python
"""Train several configs over several seeds under the same conditions and print metric ± deviation side by side.

Runs that are finished are not repeated, so that an interrupted comparison goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

TRAIN = Path(__file__).with_name('train.py')


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='+', help='configs to compare')
    parser.add_argument('--seeds', type=int, default=3, help='seeds 0 … N-1 (default 3)')
    parser.add_argument('--metric', default='mIoU', help='name in the validation log')
    parser.add_argument('--work-dir', default='work_dirs/compare')
    parser.add_argument('--tag', default='', help='names this budget, e.g. 20-labels')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE',
        help='changes to every config; {seed} stands for the seed',
    )  # fmt: skip
    args = parser.parse_args()
    rows = []
    jobs = [(config, seed) for config in args.configs for seed in range(args.seeds)]
    scores: dict[str, list[float]] = {}
    begin = time.time()
    for number, (config, seed) in enumerate(jobs):
        score, seconds = run(config, seed, args)
        scores.setdefault(config, []).append(score)
        rows.append(dict(config=Path(config).stem, tag=args.tag, seed=seed, score=score, seconds=seconds))
        left = (time.time() - begin) / (number + 1) * (len(jobs) - number - 1)
        print(f'[{number + 1}/{len(jobs)}] {Path(config).stem} seed {seed}: {args.metric} {score:.2f} ({seconds:.0f} s), about {left / 60:.0f} min left', flush=True)  # fmt: skip
    table = markdown(scores, args.metric, args.tag)
    print(table)
    out = Path(args.work_dir) / (args.tag or 'all')
    out.with_suffix('.md').write_text(table + '\n', encoding='utf-8')
    with open(out.with_suffix('.csv'), 'w', newline='') as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return 0


def run(config: str, seed: int, args: argparse.Namespace) -> tuple[float, float]:
    """One training in a process of its own; (score, seconds)."""
    folder = Path(args.work_dir) / args.tag / Path(config).stem / f'seed-{seed}'
    done = folder / 'result.json'
    options = [option.replace('{seed}', str(seed)) for option in args.cfg_options]
    asked = dict(config=Path(config).read_text(), options=options, metric=args.metric)
    if done.is_file():
        record = json.loads(done.read_text())
        if record['asked'] == asked:
            return record['score'], record['seconds']
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), config, '--work-dir', str(folder), '--seed', str(seed)]
    command += ['--cfg-options', *options] if options else []
    begin = time.time()
    with open(folder / 'log.txt', 'w') as log:
        status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
    if status:
        tail = (folder / 'log.txt').read_text().splitlines()[-5:]
        raise SystemExit(f'{config} seed {seed} failed; end of {folder / "log.txt"}:\n' + '\n'.join(tail))
    score, seconds = last_metric(folder, args.metric), time.time() - begin
    temporary = done.with_suffix('.tmp')
    temporary.write_text(json.dumps(dict(asked=asked, score=score, seconds=seconds)))
    temporary.rename(done)
    return score, seconds


def last_metric(folder: Path, metric: str) -> float:
    """The last value of a validation metric in a run's newest log."""
    logs = sorted(folder.glob('*/vis_data/scalars.json'))
    values = []
    for line in logs[-1].read_text().splitlines() if logs else []:
        record = json.loads(line)
        if metric in record:
            values.append(record[metric])
    if not values:
        raise SystemExit(f'{folder}: no {metric!r} was logged. Does the config validate, and is the metric called so?')
    return float(values[-1])


def markdown(scores: dict[str, list[float]], metric: str, tag: str) -> str:
    lines = [f'| {tag or "config"} | {metric} | seeds |', '|---|---|---|']
    for config, values in sorted(scores.items(), key=lambda item: -statistics.mean(item[1])):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = ', '.join(f'{value:.1f}' for value in values)
        lines.append(f'| {Path(config).stem} | {statistics.mean(values):.1f} ± {spread:.1f} | {each} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    raise SystemExit(main())
