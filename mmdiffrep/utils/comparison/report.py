"""The outcome of a comparison as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import matching, pretraining
from .fairness import Findings
from .flops import CONVENTION
from .runs import Result
from .text import amount, number, spread, table


@dataclass
class Line:
    """One config in a comparison."""

    name: str
    short: str  # without what all the names share
    cfg: Any
    cost: Mapping[str, Any]
    results: list[Result]

    def scores(self, metric: str) -> list[float]:
        return [result.score(metric) for result in self.results]

    @property
    def pretraining(self) -> str:
        return pretraining.describe(self.cfg)

    @property
    def iterations_per_second(self) -> float | None:
        """Of training, median over the seeds; None where no run logged it."""
        paces = [r.iteration_seconds for r in self.results if r.iteration_seconds]
        return 1 / statistics.median(paces) if paces else None


@dataclass
class Comparison:
    """All that is reported."""

    lines: list[Line]
    metrics: list[str]  # the first one orders the table
    tag: str
    findings: Findings
    matched: list[matching.Matched] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # what could not be done, and why

    def ordered(self) -> list[Line]:
        return sorted(self.lines, key=lambda line: -statistics.mean(line.scores(self.metrics[0])))


def markdown(comparison: Comparison) -> str:
    """Table, what is unfair, what the columns mean, the view at equal cost."""
    lines = comparison.ordered()
    metric = comparison.metrics[0]
    columns = {
        name: column
        for name, column in COLUMNS.items()
        if any(column(line) != amount(None) for line in lines)  # what is known of one
    }
    head = [comparison.tag or 'config', *comparison.metrics, f'{metric} of each seed', *columns]
    head.append('pre-trained on')
    rows = [
        [
            line.name,
            *(spread(line.scores(name)) for name in comparison.metrics),
            ', '.join(number(score) for score in line.scores(metric)),
            *(column(line) for column in columns.values()),
            line.pretraining,
        ]
        for line in lines
    ]
    parts = [table(head, rows, left=(0, len(head) - 1)), _fairness(comparison)]
    parts += _at_equal_cost(comparison)
    notes = [*_conventions(comparison), *comparison.remarks]
    parts.append('How it was measured:\n\n' + '\n'.join(f'- {note}' for note in notes))
    return '\n\n'.join(part for part in parts if part)


def csv_text(comparison: Comparison) -> str:
    """One row a run; costs in FLOPs, bytes, images and iterations a second, seconds."""
    rows = []
    for line in comparison.lines:
        for seed, result in enumerate(line.results):
            rows.append(
                dict(
                    config=line.name, tag=comparison.tag, seed=seed,
                    **{name: result.score(name) for name in comparison.metrics}, seconds=round(result.seconds, 1),
                    **{key: line.cost.get(key) for key in COSTS}, iterations_per_second=line.iterations_per_second,
                    pretrained_on=line.pretraining,
                )  # fmt: skip
            )
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys(), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def as_data(comparison: Comparison) -> dict[str, Any]:
    """Everything as JSON data, with the validation curves."""
    return dict(
        tag=comparison.tag,
        metrics=comparison.metrics,
        configs=[
            dict(
                name=line.name, pretrained_on=line.pretraining, cost=dict(line.cost),
                iterations_per_second=line.iterations_per_second,
                runs=[
                    dict(seed=seed, source=r.source, seconds=r.seconds, curve=r.points)
                    for seed, r in enumerate(line.results)
                ],
            )
            for line in comparison.lines
        ],
        unfair=comparison.findings.unfair,
        notes=comparison.findings.notes,
        at_equal_cost=[vars(matched) for matched in comparison.matched],
        remarks=comparison.remarks,
    )  # fmt: skip


def _fairness(comparison: Comparison) -> str:
    if len(comparison.lines) < 2:
        return ''
    unfair, notes = comparison.findings.unfair, comparison.findings.notes
    parts = ['**Unfair comparison:**' if unfair else 'No unfairness was found in the configs.']
    parts += ['', *(f'- {line}' for line in unfair)] if unfair else []
    if notes:
        parts += ['', 'Also different, which may be meant:', '', *(f'- {line}' for line in notes)]
    return '\n'.join(parts)


def _at_equal_cost(comparison: Comparison) -> list[str]:
    parts = []
    for matched in comparison.matched:
        size = amount(matched.budget, matching.UNITS[matched.unit])
        order = sorted(comparison.lines, key=lambda line: -_mean(matched.values[line.name]))
        rows = [
            [
                line.name, spread(matched.values[line.name]), _percent(matched.shares[line.name]),
                ', '.join(number(value) for value in matched.values[line.name]),
            ]
            for line in order
        ]  # fmt: skip
        title = f'At equal cost of training, {size} (the cheapest run; values between validations are interpolated):'
        head = ['config', comparison.metrics[0], 'share of its training', 'each seed']
        notes = '\n'.join(f'- {note}' for note in matched.notes)
        parts += [title, table(head, rows), notes]
    return parts


def _percent(share: float) -> str:
    return '< 1 %' if share < 0.01 else f'{100 * share:.0f} %'


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else float('-inf')


def _conventions(comparison: Comparison) -> list[str]:
    """What the columns mean, and where the costs were measured."""
    costs = [line.cost for line in comparison.lines if line.cost.get('flops') is not None]
    notes = ['parameters: all, with frozen ones that are not in the checkpoint; trained: those with gradients']
    for cost in costs[:1]:
        size = '×'.join(map(str, cost['image_size'])) if cost.get('image_size') else 'its own size'
        notes += [
            f'FLOPs: of one image ({size}, {cost["images"]}), inference; {CONVENTION}',
            f'images/s: median of timed predictions of {cost["batch_size"]} at once; memory: peak of the {cost["memory_kind"]} '
            f'at that, weights included; on {cost["device"]}, {cost["threads"]} threads',
        ]
    if any(line.cfg.get('default_scope') == 'mmdet' for line in comparison.lines):
        notes.append(
            'of a detector whose heads look at proposed regions, the cost goes with their number; it is measured with the '
            'weights as built, on drawn images'
        )
    if any(line.cost.get('train_memory') for line in comparison.lines):
        notes.append(
            'it/s: training iterations, with loading; training memory and FLOPs: one iteration of the '
            "config's batch, forward, backward and optimizer"
        )
    for line in comparison.lines:
        for start in pretraining.starts(line.cfg):
            text = pretraining.card(start.weights) if start.weights else None
            if text and (note := f'{start.weights}: {text}') not in notes:
                notes.append(note)
    return notes


COLUMNS = {
    'parameters': lambda line: amount(line.cost.get('parameters')),
    'trained': lambda line: amount(line.cost.get('trained')),
    'FLOPs': lambda line: amount(line.cost.get('flops')),
    'images/s': lambda line: amount(line.cost.get('images_per_second')),
    'memory': lambda line: amount(line.cost.get('memory'), 'B'),
    'training FLOPs/it': lambda line: amount(line.cost.get('train_flops')),
    'it/s': lambda line: amount(line.iterations_per_second),
    'training memory': lambda line: amount(line.cost.get('train_memory'), 'B'),
}
COSTS = ('parameters', 'trained', 'flops', 'images_per_second', 'memory', 'train_flops', 'train_memory')
