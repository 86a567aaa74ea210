#!/usr/bin/env python
"""What a step of pre-training costs: images a second and memory, of each config on random images.

    python tools/step_cost.py configs/pretrain/edm_*.py

Processor time on one thread, so that other work on the machine hardly counts; seconds on an accelerator. Each config is measured in a
process of its own, whose peak of main memory (libraries included) is printed, or the accelerator's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

import mmdiffrep  # noqa: F401
from mmdiffrep.registry import MODELS
from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.memory import peak_of_process
from mmdiffrep.utils.taps import format_table


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='+', help='of configs/pretrain')
    parser.add_argument('--batch-size', type=int, help="default: the config's")
    parser.add_argument('--steps', type=int, default=4, help='timed steps')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--one', action='store_true', help=argparse.SUPPRESS)  # the process that measures
    return parser


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One config's row."""
    torch.set_num_threads(1)
    config = Config.fromfile(cli.existing_config(args.configs[0]))
    loader = config.get('train_dataloader', {})
    size = loader.get('dataset', {}).get('size')
    if size is None:
        raise ValueError(f'{args.configs[0]}: its training data has no size, so that it is no config of configs/pretrain')
    batch = args.batch_size or loader.batch_size
    if batch < 1 or args.steps < 1:
        raise ValueError(f'--batch-size {batch} --steps {args.steps} do not fit; allowed: at least 1')
    model = MODELS.build(config.model).to(args.device).train()
    optimizer = build_optim_wrapper(model, {'type': 'OptimWrapper', **config.optim_wrapper})
    data: dict[str, Any] = dict(inputs=torch.randint(256, (batch, 3, size, size), dtype=torch.uint8))
    generative = getattr(model, 'model', None)
    if getattr(generative, 'takes_text', False):
        data['caption'] = ['a text'] * batch
    if getattr(generative, 'takes_classes', False):
        data['label'] = torch.zeros(batch, dtype=torch.long)
    on_cpu = args.device == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    model.train_step(data, optimizer)  # the first one allocates
    begin = clock()
    for _ in range(args.steps):
        model.train_step(data, optimizer)
    if not on_cpu:
        torch.cuda.synchronize()
    seconds = clock() - begin
    peak = peak_of_process() if on_cpu else torch.cuda.max_memory_allocated()
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dict(parameters=weights, batch=batch, speed=batch * args.steps / seconds, memory=peak)


def table(args: argparse.Namespace) -> None:
    rows = []
    for path in args.configs:
        command = [sys.executable, __file__, path, '--one', '--steps', str(args.steps), '--device', args.device]
        if args.batch_size:
            command += ['--batch-size', str(args.batch_size)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip().splitlines()[-1].removeprefix('error: '))
        found = json.loads(done.stdout.splitlines()[-1])
        memory = f'{found["memory"] / 2**30:.2f} GiB'
        rows.append([Path(path).stem, f'{found["parameters"] / 1e6:.2f}M', str(found['batch']), f'{found["speed"]:.1f}', memory])
        print(f'{len(rows)}/{len(args.configs)} {path}', file=sys.stderr, flush=True)
    print(format_table(['config', 'trained parameters', 'batch', 'images/s', 'memory'], rows))


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: print(json.dumps(measure(args))) if args.one else table(args))


if __name__ == '__main__':
    raise SystemExit(main())
