"""What is compared: configs, resolved for a seed, and the key under which a result is kept."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from .. import cli

# where a run writes, and what starts it, does not change what it finds
NOT_IN_KEY = ('work_dir', 'launcher')


@dataclass(frozen=True)
class Entry:
    """One side of a comparison."""

    name: str  # unique among the entries; its runs lie in a folder of this name
    path: str
    options: tuple[str, ...] = ()  # KEY=VALUE; {seed} stands for the seed
    checkpoint: str | None = None  # what is tested; {seed} stands for the seed; None: it is trained

    def options_for(self, seed: int) -> list[str]:
        return [option.replace('{seed}', str(seed)) for option in self.options]

    def config(self, seed: int = 0) -> Config:
        """The config as a run with this seed gets it."""
        return resolve(self.path, self.options_for(seed), seed)

    def checkpoint_for(self, seed: int) -> str | None:
        return self.checkpoint and self.checkpoint.replace('{seed}', str(seed))

    def key(self, seed: int) -> str:
        """Changes when anything that a run with this seed depends on does: bases, options, the checkpoint's file."""
        config = plain(self.config(seed))
        content: dict[str, Any] = {k: v for k, v in config.items() if k not in NOT_IN_KEY}
        checkpoint = self.checkpoint_for(seed)
        content['tested'] = checkpoint and [checkpoint, *_file_stamp(checkpoint)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# what a table is about, by the evaluator that measures it
USUAL = dict(
    ClassAccuracy='accuracy/top1', PanopticQuality='panoptic/PQ', PCK='pck/box-per-point@0.1', HomographyAccuracy='homography/corners<=3px',
    RegionAndContour='davis/J&F', SemanticIoU='semantic/mIoU',
)  # fmt: skip


def usual_metric(config: Config) -> str:
    """The metric that a config's evaluator is known by; mIoU where nothing is known."""
    evaluators = config.get('val_evaluator') or config.get('test_evaluator') or []
    for evaluator in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        kind = cli.type_name(evaluator)
        if kind in USUAL:
            return USUAL[kind]
    return 'mIoU'


def make_entries(
    configs: Sequence[str],
    options: Sequence[str] = (),
    checkpoints: Sequence[str] | None = None,
    seeds: int = 1,
) -> list[Entry]:
    """The entries of a comparison, checked.

    Args:
        checkpoints: one a config, to be tested; None: the configs are trained.

    Raises:
        FileNotFoundError: a config (with the nearest names) or a checkpoint is not there.
        ValueError: the numbers do not fit, an entry is given twice, or a config cannot be read or has nothing to measure.
    """
    if seeds < 1:
        raise ValueError(f'--seeds {seeds} does not fit: give a whole number, at least 1')
    if checkpoints is not None and len(checkpoints) != len(configs):
        raise ValueError(
            f'{len(configs)} configs and {len(checkpoints)} checkpoints were given: --test takes one checkpoint a '
            'config, in the same order'
        )
    paths = [cli.existing_config(path) for path in configs]
    given: list[tuple[str, str | None]] = list(zip(paths, checkpoints or [None] * len(paths)))
    twice = sorted({path for path, checkpoint in given if given.count((path, checkpoint)) > 1})
    if twice:
        raise ValueError(f'{", ".join(twice)} is given twice: leave one of them out')
    entries = [
        Entry(name, path, tuple(options), checkpoint)
        for name, (path, checkpoint) in zip(_names(given), given)
    ]
    for entry in entries:
        _check(entry, seeds)
    return entries


def resolve(path: str, options: Sequence[str], seed: int) -> Config:
    """The config with its bases and options, as ``tools/train.py`` reads it.

    Raises: ValueError naming the file and what is wrong with it, or the option that is no KEY=VALUE.
    """
    for option in options:
        if '=' not in option:
            raise ValueError(f'--cfg-options {option!r} is not of the form KEY=VALUE')
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    cli.add_arguments(parser)
    argv = [path, '--seed', str(seed), *(['--cfg-options', *options] if options else [])]
    try:
        return cli.read_config(parser.parse_args(argv))
    except Exception as error:  # a config is code: anything may go wrong in it
        what = f'{type(error).__name__}: {error}'
        raise ValueError(f'config {path} cannot be read with {list(options)}: {what}') from error


def can_validate(cfg: Config) -> bool:
    """Whether training with this config also validates."""
    return all(cfg.get(key) is not None for key in ('val_dataloader', 'val_cfg', 'val_evaluator'))


def can_test(cfg: Config) -> bool:
    """Whether the config says how to evaluate a trained model."""
    return all(
        cfg.get(key) is not None for key in ('test_dataloader', 'test_cfg', 'test_evaluator')
    )


def plain(value: Any) -> Any:
    """A config as JSON data; classes and functions by their names."""
    if isinstance(value, Config):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    return re.sub(r' at 0x[0-9a-f]+', '', repr(value))  # an address is another one in every process


def short_names(names: Sequence[str]) -> list[str]:
    """The names without the words ('_' between them) that they all begin or end with."""
    words = [name.split('_') for name in names]
    if len(words) < 2:
        return list(names)
    shared = min(map(len, words)) - 1  # a word is left of each
    front = _shared_front(words, shared)
    back = _shared_front([part[::-1] for part in words], shared - front)
    return ['_'.join(part[front : len(part) - back]) for part in words]


def _shared_front(words: Sequence[Sequence[str]], most: int) -> int:
    count = 0
    while count < most and len({part[count] for part in words}) == 1:
        count += 1
    return count


def _names(given: Sequence[tuple[str, str | None]]) -> list[str]:
    """File names without their ending; with as many of their folders, and of the checkpoint's path, as tell them apart."""
    names = _shortest([Path(path).resolve().with_suffix('').parts for path, _ in given])
    tails = _shortest([Path(c).with_suffix('').parts if c else () for _, c in given])
    return [
        f'{name}@{tail.replace("/", "-")}' if names.count(name) > 1 else name
        for name, tail in zip(names, tails)
    ]


def _shortest(parts: Sequence[Sequence[str]]) -> list[str]:
    """The ends of paths, each as long as it must be to differ from the others that differ from it."""
    names = []
    for own in parts:
        others = [other for other in parts if other != own]
        depth = 1
        while depth < len(own) and any(other[-depth:] == own[-depth:] for other in others):
            depth += 1
        names.append('/'.join(own[-depth:]))
    return names


def _check(entry: Entry, seeds: int) -> None:
    cfg = entry.config()
    if entry.checkpoint is not None:
        for seed in range(seeds):
            cli.existing_checkpoint(entry.checkpoint_for(seed) or '')
        if not can_test(cfg):
            raise ValueError(f'{entry.path} has no test_dataloader, test_cfg and test_evaluator: nothing to evaluate')
        return
    if cfg.get('train_dataloader') is None:
        raise ValueError(f'{entry.path} has no train_dataloader: there is nothing to train')
    if not can_validate(cfg) and not can_test(cfg):
        raise ValueError(
            f'{entry.path} has neither val_dataloader, val_cfg, val_evaluator nor the same for test: it gives no metric '
            'to compare'
        )


def _file_stamp(path: str) -> list[int]:
    """Size and time of change of a local file."""
    if not Path(path).is_file():
        return []
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns]
