"""A whole comparison: measure, run, compare, write."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import fairness, matching, picture, report, runs, text
from .entries import Entry, short_names


@dataclass(frozen=True)
class Study:
    """What is asked for.

    Attributes:
        tools: the folder of ``train.py`` and ``test.py``.
        work_dir: results go to ``<work_dir>/<tag>.md`` and so on, runs below ``<work_dir>/<tag>/``.
        match: units in which the view at equal cost is asked for: ``'flops'``, ``'seconds'``, ``'images'``.
        cost: the picture's horizontal axis: ``'flops'``, ``'params'``, ``'seconds'``, ``'memory'``.
        batch_size, size: of the images on which the cost is measured; size None: each config's own.
    """

    entries: Sequence[Entry]
    seeds: int
    metrics: Sequence[str]
    work_dir: Path
    tools: Path
    tag: str = ''
    match: Sequence[str] = ()
    cost: str = 'flops'
    batch_size: int = 1
    size: tuple[int, int] | None = None

    @property
    def folder(self) -> Path:
        return self.work_dir / self.tag


def study(asked: Study, say: Callable[[str], None] = print) -> report.Comparison:
    """Do what is asked for, telling the progress, and write the outcome.

    Raises:
        RunError: a run failed; with the end of its log.
        ValueError: a metric was not logged; with what was.
    """
    costs = {}
    for number, entry in enumerate(asked.entries):
        cost, again = measured(entry, asked)
        costs[entry.name] = cost
        state = ' (measured before)' if again else ''
        say(f'[cost {number + 1}/{len(asked.entries)}] {entry.name}: {_cost_line(cost)}{state}')
    results = _run_all(asked, say)
    comparison = _assemble(asked, costs, results)
    for file in write_all(comparison, asked):
        say(f'written: {file}')
    return comparison


def measured(entry: Entry, asked: Study) -> tuple[dict[str, Any], bool]:
    """(what an entry costs, whether it was measured before). Raises: RunError."""
    train = entry.checkpoint is None
    machine = [torch.get_num_threads(), torch.cuda.is_available()]
    conditions = [asked.batch_size, asked.size, train, machine]
    key = hashlib.sha256(json.dumps([entry.key(0), conditions]).encode()).hexdigest()
    own = asked.folder / entry.name
    kept = runs.load_kept(own / 'cost.json', key)
    if kept is not None:
        return kept, True
    new = own / 'cost.new.json'
    options = entry.options_for(0)
    command = [
        sys.executable, '-m', 'mmdiffrep.utils.comparison.measure', entry.path, '--out', str(new), '--seed', '0',
        '--work-dir', str(own), '--batch-size', str(asked.batch_size),
        *(['--size', *map(str, asked.size)] if asked.size else []), *(['--train'] if train else []),
        *(['--cfg-options', *options] if options else []),
    ]  # fmt: skip
    runs.call(command, own / 'cost.log', f'measuring {entry.name}')
    cost = json.loads(new.read_text(encoding='utf-8'))
    new.unlink()
    runs.keep(own / 'cost.json', key, cost)
    return cost, False


def write_all(comparison: report.Comparison, asked: Study) -> list[Path]:
    """The outcome's files, ``<work_dir>/<tag>.md``, ``.csv``, ``.png``, ``.json``."""
    png, left_out = picture.draw(comparison, asked.cost)
    if left_out:
        comparison.remarks.append(
            f'not in the picture, their cost ({asked.cost}) not being known: {", ".join(left_out)}'
        )
    contents = {
        'md': report.markdown(comparison) + '\n',
        'csv': report.csv_text(comparison),
        'json': json.dumps(report.as_data(comparison), indent=1) + '\n',
        'png': png,
    }
    files = []
    for ending, content in contents.items():
        files.append(asked.work_dir / f'{asked.tag or "all"}.{ending}')
        runs.write(files[-1], content)
    return files


def _run_all(asked: Study, say: Callable[[str], None]) -> dict[str, list[runs.Result]]:
    jobs = [(entry, seed) for entry in asked.entries for seed in range(asked.seeds)]
    results: dict[str, list[runs.Result]] = {entry.name: [] for entry in asked.entries}
    begin, new = time.perf_counter(), 0
    for number, (entry, seed) in enumerate(jobs):
        result = runs.run(entry, seed, asked.folder, asked.tools)
        results[entry.name].append(result)
        new += not result.again
        scores = ', '.join(f'{name} {text.number(result.score(name))}' for name in asked.metrics)
        state = 'done before' if result.again else f'{result.seconds:.0f} s'
        remaining = len(jobs) - number - 1
        left = ''
        if remaining and new:  # what was done before says nothing about the time
            left = f', about {(time.perf_counter() - begin) / new * remaining / 60:.0f} min left'
        say(f'[{number + 1}/{len(jobs)}] {entry.name} seed {seed}: {scores} ({state}){left}')
    return results


def _assemble(
    asked: Study, costs: Mapping[str, dict[str, Any]], results: Mapping[str, list[runs.Result]]
) -> report.Comparison:
    names = [entry.name for entry in asked.entries]
    lines = [
        report.Line(entry.name, short, entry.config(), costs[entry.name], results[entry.name])
        for entry, short in zip(asked.entries, short_names(names))
    ]
    sides = [
        fairness.Side(
            name=line.short,
            cfg=line.cfg,
            cost=line.cost,
            sources=[result.source for result in line.results],
            trained=entry.checkpoint is None,
        )
        for line, entry in zip(lines, asked.entries)
    ]
    comparison = report.Comparison(lines, list(asked.metrics), asked.tag, fairness.compare(sides))
    for line in lines:
        for problem in line.cost['problems']:
            comparison.remarks.append(f'{line.name}: not all could be measured: {problem}')
    for unit in asked.match:
        try:
            comparison.matched.append(_matched(lines, asked.metrics[0], unit))
        except ValueError as error:
            comparison.remarks.append(f'no view at equal {unit}: {error}')
    if any(entry.checkpoint for entry in asked.entries):
        comparison.remarks.append(
            'checkpoints were tested: what is said about their training is what the configs say'
        )
    return comparison


def _matched(lines: Sequence[report.Line], metric: str, unit: str) -> matching.Matched:
    totals = {
        line.name: [matching.training_cost(line.cfg, line.cost, r, unit) for r in line.results]
        for line in lines
    }
    return matching.match({line.name: line.results for line in lines}, totals, metric, unit)


def _cost_line(cost: Mapping[str, Any]) -> str:
    words = f'{text.amount(cost["parameters"])} parameters, {text.amount(cost["trained"])} trained'
    if cost.get('flops') is not None:
        words += f', {text.amount(cost["flops"], "FLOPs")}, {text.amount(cost["images_per_second"])} images/s'
    return words
