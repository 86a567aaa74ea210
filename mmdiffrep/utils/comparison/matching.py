"""Comparing runs at the same cost of training, instead of at the end of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import logs
from .runs import Result
from .text import amount

UNITS = {'flops': 'FLOPs', 'seconds': 's', 'images': 'images'}


@dataclass
class Matched:
    """The view at equal training cost.

    Attributes:
        budget: the smallest total training cost of any run.
        values: metric of each seed at the budget, by entry; None where the entry was first validated later.
        shares: the part of its own training that an entry had done by then, mean over seeds.
    """

    unit: str
    budget: float
    values: dict[str, list[float | None]]
    shares: dict[str, float]
    notes: list[str] = field(default_factory=list)


def at_cost(curve: Sequence[tuple[float, float]], budget: float) -> float | None:
    """A curve of (cost, value) at a cost, linear between its points; None before the first and after the last."""
    points = sorted(curve)
    slack = 1e-9 * abs(budget)  # sums of floats
    for cost, value in points:
        if abs(cost - budget) <= slack:
            return value
    for (left, low), (right, high) in zip(points, points[1:]):
        if left < budget < right:
            return low + (high - low) * (budget - left) / (right - left)
    return None


def training_cost(cfg: Any, cost: Mapping[str, Any], result: Result, unit: str) -> float:
    """A run's whole training in FLOPs (forward, backward, recomputation), seconds (without validations) or images seen.

    Raises: ValueError with what is missing.
    """
    iterations = float(logs.length(cfg))
    if logs.by_epoch(cfg):
        iterations *= _known(cost, 'epoch_iterations', 'iterations of an epoch')
    if unit == 'flops':
        return iterations * _known(cost, 'train_flops', 'FLOPs of a training iteration')
    if unit == 'images':
        return iterations * _known(cost, 'train_batch', 'batch size')
    if result.iteration_seconds is None:
        raise ValueError(
            'the time of an iteration was not logged: give default_hooks.logger.interval a value below the number of iterations'
        )
    return iterations * result.iteration_seconds


def match(
    runs: Mapping[str, Sequence[Result]],
    totals: Mapping[str, Sequence[float]],
    metric: str,
    unit: str,
) -> Matched:
    """Each run's metric when its training had cost as much as the cheapest run's did in all.

    Args:
        totals: the training cost of each run, in the unit.
    """
    budget = min(total for each in totals.values() for total in each)
    matched = Matched(unit, budget, {}, {})
    for name, results in runs.items():
        curves = [
            [(share * total, value) for share, value in result.curve(metric)]
            for result, total in zip(results, totals[name])
        ]
        matched.values[name] = [at_cost(curve, budget) for curve in curves]
        shares = [budget / total for total in totals[name]]
        matched.shares[name] = sum(shares) / len(shares)
        if None in matched.values[name]:
            matched.notes.append(_why_not(name, curves, budget, unit))
    if any(share < 1 - 1e-6 for share in matched.shares.values()):
        matched.notes.append(
            'a run read before its end had not finished its learning-rate schedule: a run made for this budget may reach more'
        )
    return matched


def _why_not(
    name: str, curves: Sequence[Sequence[tuple[float, float]]], budget: float, unit: str
) -> str:
    points = max(map(len, curves))
    first = max(curve[0][0] for curve in curves)
    had = 'has just one validation point' if points == 1 else f'has {points} validation points'
    return (
        f'{name} {had}, the first at {amount(first, UNITS[unit])}, and cannot be read at {amount(budget, UNITS[unit])}: give it a '
        'smaller train_cfg.val_interval'
    )


def _known(cost: Mapping[str, Any], key: str, what: str) -> float:
    if cost.get(key) is None:
        problems = '; '.join(cost.get('problems', [])) or 'it was not measured'
        raise ValueError(f'the {what} is not known: {problems}')
    return float(cost[key])
