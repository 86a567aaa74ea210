"""Runs the trainings and tests of a comparison, each in a process of its own, and keeps what they found."""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write
from . import logs
from .entries import Entry, can_test

TAIL = 8  # lines of a failed run's log that are shown


class RunError(RuntimeError):
    """A training, a test or a measurement failed; the message holds the end of its log."""


@dataclass
class Result:
    """What a run found.

    Attributes:
        points: each validation, or the one test: (share of the training that was done, metrics).
        source: ``'validation'`` or ``'test'``.
        seconds: wall time of all of the run, with imports and validations.
        iteration_seconds: of one training iteration with its data; None where it was not logged.
    """

    points: list[tuple[float, dict[str, float]]]
    source: str
    seconds: float
    iteration_seconds: float | None = None
    again: bool = field(default=False, compare=False)  # it was there already

    def score(self, metric: str) -> float:
        """The last value. Raises: ValueError with what was logged."""
        return self.curve(metric)[-1][1]

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(share of the training, value), in the order of training. Raises: ValueError with what was logged."""
        values = [(share, found[metric]) for share, found in self.points if metric in found]
        if not values:
            logged = sorted({name for _, found in self.points for name in found})
            lower = {name.lower(): name for name in logged}
            near = difflib.get_close_matches(metric.lower(), lower, n=1, cutoff=0.6)
            hint = f' Did you mean {lower[near[0]]!r}?' if near else ''
            raise ValueError(f'--metric {metric!r} was not logged; logged: {", ".join(logged)}.{hint}')
        return values


def run(entry: Entry, seed: int, folder: Path, tools: Path) -> Result:
    """Train or test an entry with one seed; what is finished and would be the same is not repeated.

    Args:
        folder: of the comparison; the run's own lies below it.
        tools: where ``train.py`` and ``test.py`` are.

    Raises:
        RunError: the run failed, or logged no metric.
    """
    own = folder / entry.name / f'{"test" if entry.checkpoint else "seed"}-{seed}'
    done, key = own / 'result.json', entry.key(seed)
    kept = load_kept(done, key)
    if kept is not None:
        points = [(share, found) for share, found in kept['points']]
        return Result(**{**kept, 'points': points, 'again': True})
    begin = time.perf_counter()
    if entry.checkpoint:
        result = _test(entry, seed, own, entry.checkpoint_for(seed) or '', tools)
    else:
        result = _train(entry, seed, own, tools)
    result.seconds = time.perf_counter() - begin
    content = asdict(result)
    del content['again']
    # for people; the key decides
    asked = dict(config=entry.path, options=entry.options_for(seed), seed=seed)
    keep(done, key, content, asked=asked, checkpoint=entry.checkpoint_for(seed))
    return result


def launch(command: Sequence[str], log: Path) -> int:
    """Run a command with its output in a file; its exit status."""
    with open(log, 'w', encoding='utf-8') as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode


def call(command: Sequence[str], log: Path, what: str) -> None:
    """Run a command of a comparison. Raises: RunError with the end of its log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    status = launch(command, log)
    if status:
        lines = [line for line in log.read_text(encoding='utf-8').splitlines() if line.strip()]
        tail = '\n'.join(f'  {line}' for line in lines[-TAIL:])
        raise RunError(f'{what} failed (status {status}); the end of {log}:\n{tail}')


def load_kept(file: Path, key: str) -> dict[str, Any] | None:
    """The content that was kept under this key; None if there is none, or of another key."""
    try:
        record = json.loads(file.read_text(encoding='utf-8'))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return record['content'] if record.get('key') == key else None


def keep(file: Path, key: str, content: dict[str, Any], **more: Any) -> None:
    """Keep the content under a key, in the place of what the file held."""
    write(file, json.dumps(dict(key=key, **more, content=content), indent=1))


def _train(entry: Entry, seed: int, own: Path, tools: Path) -> Result:
    # it must not name the checkpoint of an earlier config's run
    (own / 'last_checkpoint').unlink(missing_ok=True)
    what = f'training {entry.name} with seed {seed}'
    call(_command(tools / 'train.py', entry, seed, own), own / 'log.txt', what)
    cfg, log = entry.config(seed), logs.read_training(own)
    pace = log.iteration_seconds
    iteration_seconds = sum(pace) / len(pace) if pace else None
    if not log.validations:
        return _test_trained(entry, cfg, seed, own, tools, iteration_seconds)
    points = [
        (logs.progress(cfg, number, step), found)
        for number, (step, found) in enumerate(log.validations)
        if found
    ]
    if not points:
        raise RunError(f'{what}: none of its validations gave a metric; see {own / "log.txt"}')
    return Result(points, 'validation', 0.0, iteration_seconds)


def _test_trained(
    entry: Entry, cfg: Any, seed: int, own: Path, tools: Path, iteration_seconds: float | None
) -> Result:
    """Of a config that does not validate: its last checkpoint is tested."""
    pointer = own / 'last_checkpoint'
    if not can_test(cfg) or not pointer.is_file():
        raise RunError(
            f'{entry.name}: the training logged no validation, and there is '
            + ('no checkpoint' if can_test(cfg) else 'no test_dataloader')
            + ' to test. Let it validate (val_dataloader, val_cfg, val_evaluator), or save a checkpoint (CheckpointHook)'
        )
    result = _test(entry, seed, own / 'test', pointer.read_text().strip(), tools)
    result.iteration_seconds = iteration_seconds
    return result


def _test(entry: Entry, seed: int, own: Path, checkpoint: str, tools: Path) -> Result:
    what = f'testing {entry.name} with seed {seed}'
    call(_command(tools / 'test.py', entry, seed, own, checkpoint), own / 'log.txt', what)
    found = logs.read_test(own)
    if not found:
        raise RunError(f'{what} gave no metric; see {own / "log.txt"}')
    return Result([(1.0, found)], 'test', 0.0)


def _command(script: Path, entry: Entry, seed: int, own: Path, *arguments: str) -> list[str]:
    options = entry.options_for(seed)
    return [
        sys.executable, str(script), entry.path, *arguments, '--work-dir', str(own), '--seed', str(seed),
        *(['--cfg-options', *options] if options else []),
    ]  # fmt: skip
