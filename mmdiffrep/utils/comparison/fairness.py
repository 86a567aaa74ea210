"""What differs between the sides of a comparison, beyond what is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import images, logs, pretraining
from .entries import plain

ABSENT = 'not set'


@dataclass
class Side:
    """One side, as it is judged."""

    name: str
    cfg: Any
    cost: Mapping[str, Any] = field(default_factory=dict)  # as measured; empty: not
    sources: Sequence[str] = ()  # what its runs' metrics are of: 'validation', 'test'
    trained: bool = True  # by this comparison; else a checkpoint is tested


@dataclass
class Findings:
    """Sentences; ``unfair`` undermine a comparison, ``notes`` are differences that it may well have."""

    unfair: list[str]
    notes: list[str]


def compare(sides: Sequence[Side]) -> Findings:
    """Everything that differs between the sides."""
    traits = dict(UNFAIR)
    if all(side.cost.get('train_images') is not None for side in sides):
        traits['labelled images'] = lambda side: side.cost['train_images']  # counted, not only asked for
    unfair = [line for what, trait in traits.items() for line in differences(what, sides, trait)]
    notes = [line for what, trait in NOTED.items() for line in differences(what, sides, trait)]
    states = {pretraining.is_pretrained(side.cfg) for side in sides}
    where = unfair if len(states) > 1 else notes
    where[:0] = differences('pre-training', sides, lambda side: pretraining.describe(side.cfg))
    return Findings(unfair, notes)


def differences(what: str, sides: Sequence[Side], trait: Callable[[Side], Any]) -> list[str]:
    """Sentences about a trait in which the sides differ; none where they agree.

    A trait may be None (unknown: that side is not judged), text or a number, a list (what is not in all of them is named), or
    a dict (its entries are compared one by one).
    """
    known = [(side.name, value) for side in sides if (value := trait(side)) is not None]
    if known and all(isinstance(value, Mapping) for _, value in known):
        entries = list(dict.fromkeys(key for _, value in known for key in value))
        return [
            line
            for key in entries
            for line in _sentence(f'{what}, {key}', [(n, v.get(key, ABSENT)) for n, v in known])
        ]
    if known and all(isinstance(value, list) for _, value in known):
        shared = [item for item in known[0][1] if all(item in value for _, value in known)]
        rest = [(n, [item for item in v if item not in shared]) for n, v in known]
        if any(items for _, items in rest):
            return _sentence(what, [(n, ', '.join(items) or 'none of these') for n, items in rest])
        return _sentence(what, [(n, 'order ' + ', '.join(v)) for n, v in known])
    return _sentence(what, known)


def _sentence(what: str, values: Sequence[tuple[str, Any]]) -> list[str]:
    """['batch size: 4 in a, b; 8 in c']; empty where the values are the same."""
    groups: dict[str, list[str]] = {}
    for name, value in values:
        groups.setdefault(str(value), []).append(name)
    if len(groups) < 2:
        return []
    return [f'{what}: ' + '; '.join(f'{value} in {", ".join(n)}' for value, n in groups.items())]


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
    """A nested config as dotted keys; a list of dicts counts as a whole."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat.update(_flat(item, f'{prefix}.{key}' if prefix else str(key)))
    return flat


def _data(side: Side, *loaders: str) -> dict[str, Any] | None:
    """Which data; not what is done with it, and not how many of it are labelled."""
    loader = next((side.cfg.get(key) for key in loaders if side.cfg.get(key)), None)
    if loader is None:
        return None
    other = {'pipeline', 'num_labels', 'subset_seed', 'indices', 'max_images', 'backend_args'}
    dataset = plain(images.innermost(loader.get('dataset')))
    return _flat({key: value for key, value in dataset.items() if key not in other})


def _labels(side: Side) -> str:
    """How many labelled images the config asks for."""
    dataset = images.innermost((side.cfg.get('train_dataloader') or {}).get('dataset'))
    counts = [dataset.get(key) for key in ('num_labels', 'indices', 'max_images')]
    return next((str(plain(count)) for count in counts if count is not None), 'all')


def _subset(side: Side) -> Any:
    dataset = images.innermost((side.cfg.get('train_dataloader') or {}).get('dataset'))
    return dataset.get('subset_seed', 0) if dataset.get('num_labels') is not None else None


def _crop(side: Side) -> Any:
    """The size at which images are trained on."""
    model = side.cfg.get('model') or {}
    steps = [f'{n} {h}×{w}' for n, (h, w) in images.crops(side.cfg.get('train_dataloader'))]
    size = plain((model.get('data_preprocessor') or {}).get('size'))
    if size is not None:
        steps.append(f'padded to {_size(size if isinstance(size, list) else [size] * 2)}')
    return ', '.join(steps) or 'whole images'


def _pipeline(side: Side, *loaders: str) -> list[str] | None:
    """The transforms with their settings, without the sizes."""
    loader = next((side.cfg.get(key) for key in loaders if side.cfg.get(key)), None)
    if loader is None:
        return None
    steps = []
    for step in images.pipeline(loader):
        size = images.SIZING.get(_name(step), ('',))[0]
        steps.append(_call({key: value for key, value in step.items() if key != size}))
    return steps


def _call(step: Any) -> str:
    """dict(type='mmseg.RandomFlip', prob=0.5) -> 'RandomFlip(prob=0.5)'"""
    settings = dict(plain(step))
    name = _name(settings)
    settings.pop('type', None)
    return name + (f'({", ".join(f"{k}={v}" for k, v in settings.items())})' if settings else '')


def _name(step: Mapping[str, Any]) -> str:
    return str(plain(step.get('type'))).rpartition('.')[2]


def _size(sides: Sequence[int] | None) -> str | None:
    return '×'.join(map(str, sides)) if sides else None


def _length(side: Side) -> str | None:
    if not side.cfg.get('train_cfg'):
        return None
    return f'{logs.length(side.cfg)} {"epochs" if logs.by_epoch(side.cfg) else "iterations"}'


def _schedule(side: Side) -> list[str]:
    schedulers = side.cfg.get('param_scheduler') or []
    return [_call(s) for s in (schedulers if isinstance(schedulers, list) else [schedulers])]


def _metrics(side: Side) -> list[str] | None:
    keys = ('val_evaluator', 'test_evaluator')[:: 1 if side.trained else -1]
    found = next((side.cfg.get(key) for key in keys if side.cfg.get(key)), None)
    if found is None:
        return None
    return sorted(_call(metric) for metric in (found if isinstance(found, list) else [found]))


def _classes(side: Side) -> Any:
    """The heads' numbers of classes."""
    found: list[int] = []

    def visit(node: Any) -> None:
        if isinstance(node, Mapping):
            if isinstance(node.get('num_classes'), int):
                found.append(node['num_classes'])
            node = list(node.values())
        if isinstance(node, (list, tuple)):
            for item in node:
                visit(item)

    visit(side.cfg.get('model'))
    return ', '.join(map(str, sorted(set(found)))) or None


def _optimizer(side: Side) -> dict[str, Any]:
    return _flat(plain(side.cfg.get('optim_wrapper') or {}))


def _hooks(side: Side) -> list[str]:
    return sorted(_call(hook) for hook in side.cfg.get('custom_hooks') or [])


def _evaluated_on(side: Side) -> tuple[str, str]:
    loaders = ('val_dataloader', 'test_dataloader')
    return loaders if side.trained else loaders[::-1]


UNFAIR: dict[str, Callable[[Side], Any]] = {
    'training data': lambda side: _data(side, 'train_dataloader'),
    'labelled images': _labels,
    'choice of the labelled images (subset_seed)': _subset,
    'crop': _crop,
    'training pipeline': lambda side: _pipeline(side, 'train_dataloader'),
    'batch size': lambda side: (side.cfg.get('train_dataloader') or {}).get('batch_size'),
    'length of the training': _length,
    'learning-rate schedule': _schedule,
    'classes': _classes,
    'evaluation data': lambda side: _data(side, *_evaluated_on(side)),
    'images evaluated on': lambda side: side.cost.get('eval_images'),
    'evaluation pipeline': lambda side: _pipeline(side, *_evaluated_on(side)),
    'metric': _metrics,
    'metric taken from': lambda side: ', '.join(sorted(set(side.sources))) or None,
    'inference': lambda side: _flat(plain((side.cfg.get('model') or {}).get('test_cfg') or {})),
    'image size of the measured cost': lambda side: _size(side.cost.get('image_size')),
    'images of the measured cost': lambda side: side.cost.get('images'),
    'batch of the measured cost': lambda side: side.cost.get('batch_size'),
    'device of the measured cost': lambda side: side.cost.get('device'),
    'threads of the measured cost': lambda side: side.cost.get('threads'),
}
NOTED: dict[str, Callable[[Side], Any]] = {
    'optimizer': _optimizer,
    'custom hooks': _hooks,
}
