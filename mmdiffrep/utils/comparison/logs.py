"""What mmengine's logs say: the metrics of each validation, the time of an iteration, the metrics of a test."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_METRICS = {'time', 'data_time', 'step', 'epoch', 'iter', 'memory'}


@dataclass
class TrainingLog:
    """A run's scalars.json."""

    validations: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (step, metrics)
    iteration_seconds: list[float] = field(default_factory=list)  # means over the logger's intervals


def records(folder: Path) -> list[dict[str, Any]]:
    """The lines of the newest log in a run's folder; none where there is none."""
    files = sorted(folder.glob('*/vis_data/scalars.json'))
    lines = files[-1].read_text(encoding='utf-8').splitlines() if files else []
    return [{_bare(key): value for key, value in json.loads(line).items()} for line in lines]


def curve(folder: Path, key: str) -> list[tuple[int, float]]:
    """(step, value) of what a run logged.

    Raises:
        FileNotFoundError: the folder has no log.
        ValueError: the log has no such key.
    """
    found = records(folder)
    if not found:
        raise FileNotFoundError(f'{folder} has no */vis_data/scalars.json: give the work folder of a run')
    points = [(int(r['step']), float(r[key])) for r in found if isinstance(r.get(key), (int, float))]
    if not points:
        names = sorted({name for record in found for name in metrics_of(record)})
        raise ValueError(f'{folder} logged no {key!r}; it has {names}')
    return points


def read_training(folder: Path) -> TrainingLog:
    """The newest log in a run's folder; empty where there is none."""
    log = TrainingLog()
    for record in records(folder):
        if 'iter' in record:  # mmengine logs it while training only
            if isinstance(record.get('time'), (int, float)):
                log.iteration_seconds.append(float(record['time']))
        elif 'time' in record:  # also one that gave no metric: mmdet's where nothing was detected
            log.validations.append((int(record.get('step', 0)), metrics_of(record)))
    return log


def read_test(folder: Path) -> dict[str, float]:
    """The metrics of the newest test in a folder; empty where there is none."""
    files = sorted(path for path in folder.glob('*/*.json') if path.stem == path.parent.name)
    for path in reversed(files):
        try:
            record = json.loads(path.read_text(encoding='utf-8'))
        except json.JSONDecodeError:  # of a training: one record a line
            continue
        found = metrics_of({_bare(key): value for key, value in record.items()})
        if found:
            return found
    return {}


def metrics_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record without times and steps."""
    return {
        key: float(value)
        for key, value in record.items()
        if key not in NOT_METRICS and isinstance(value, (int, float))
    }


def by_epoch(cfg: Any) -> bool:
    """Whether the training loop counts epochs."""
    loop = cfg.train_cfg
    kind = str(loop.get('type', ''))
    return bool(loop.get('by_epoch', 'max_epochs' in loop or kind.endswith('EpochBasedTrainLoop')))


def length(cfg: Any) -> int:
    """The training's length in the loop's own units, epochs or iterations."""
    return int(cfg.train_cfg['max_epochs' if by_epoch(cfg) else 'max_iters'])


def progress(cfg: Any, number: int, step: int) -> float:
    """How much of the training was done at its validation ``number`` (from 0), which the log gives ``step``.

    The log counts in epochs or in iterations (``LoggerHook.log_metric_by_epoch``); where that is not what the loop counts
    in, the loop's ``val_begin`` and ``val_interval`` say when it was.
    """
    logger = cfg.get('default_hooks', {}).get('logger') or {}
    total = length(cfg)
    if logger.get('log_metric_by_epoch', True) == by_epoch(cfg):
        return min(step / total, 1.0)
    interval = int(cfg.train_cfg.get('val_interval', 1 if by_epoch(cfg) else 1000))
    begin = int(cfg.train_cfg.get('val_begin', 1))
    first = max(math.ceil(begin / interval), 1) * interval
    return min((first + number * interval) / total, 1.0)


def _bare(key: str) -> str:
    """'val/mIoU', as ``LogProcessor(log_with_hierarchy=True)`` writes it -> 'mIoU'."""
    mode, _, rest = key.partition('/')
    return rest if mode in ('train', 'val', 'test') and rest else key
