"""Several comparisons with different numbers of labels as one: a table, and curves over the number of labels."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .entries import short_names
from .text import spread, table


@dataclass
class OverLabels:
    """What comparisons found.

    Attributes:
        metric: its name in the log.
        counts: of labels, ascending.
        scores: config -> number of labels -> a score for each seed.
        pretrained: config -> whether something in it was.
    """

    metric: str
    counts: list[int] = field(default_factory=list)
    scores: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    pretrained: dict[str, bool] = field(default_factory=dict)

    def ordered(self) -> list[str]:
        """The best at the largest number of labels that all have (else at its own largest) first."""
        shared = [n for n in self.counts if all(n in found for found in self.scores.values())]

        def merit(name: str) -> float:
            found = self.scores[name]
            return statistics.mean(found[shared[-1] if shared else max(found)])

        return sorted(self.scores, key=merit, reverse=True)

    def named(self, names: Sequence[str] | None = None) -> dict[str, str]:
        """Config -> what it is called; default: the part of its name that tells it apart.

        Args:
            names: in the order in which the files have the configs.

        Raises: ValueError if there are more or fewer.
        """
        configs = list(self.scores)
        if names is not None and (len(names) != len(configs) or len(set(names)) != len(names)):
            raise ValueError(
                f'--names {list(names)} does not fit: give a different one for each of {configs}, in this order'
            )
        return dict(zip(configs, names or short_names(configs)))

    def markdown(self, names: Sequence[str] | None = None) -> str:
        """Mean ± sample deviation over the seeds, a row a config, a column a number of labels."""
        called = self.named(names)
        head = [f'{self.metric}, labels:', *map(str, self.counts)]
        rows = [
            [called[name], *(spread(self.scores[name].get(n, [])) for n in self.counts)]
            for name in self.ordered()
        ]
        seeds = sorted(
            {len(found) for by_count in self.scores.values() for found in by_count.values()}
        )
        what = f'{seeds[0]}' if len(seeds) == 1 else f'{seeds[0]} to {seeds[-1]}'
        return f'{table(head, rows)}\n\nMean ± sample deviation over {what} seed{"" if seeds == [1] else "s"}.'

    def curves(
        self, names: Sequence[str] | None = None
    ) -> dict[str, list[tuple[float, float, float]]]:
        """Name -> (number of labels, mean, deviation)."""
        called = self.named(names)
        return {
            called[name]: [
                (n, statistics.mean(found), statistics.stdev(found) if len(found) > 1 else 0.0)
                for n, found in sorted(self.scores[name].items())
            ]
            for name in self.ordered()
        }


def read(
    files: Sequence[str | Path], counts: Sequence[int] | None = None, metric: str | None = None
) -> OverLabels:
    """What ``tools/compare.py --tag N-labels`` wrote, for each N; several files may have one N and different configs.

    Args:
        counts: of labels, one a file; default: the number in each tag, as in ``20-labels``.
        metric: default: the first of the first file.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: it is no such file, has no number in its tag or not the metric, or two have one config with one number.
    """
    if counts is not None and len(counts) != len(files):
        raise ValueError(
            f'{len(counts)} numbers of labels were given for {len(files)} files: give one a file'
        )
    contents = [_load(Path(file)) for file in files]
    found = OverLabels(metric or contents[0]['metrics'][0])
    for k, (file, content) in enumerate(zip(files, contents)):
        count = counts[k] if counts is not None else _count(content['tag'], file)
        found.counts = sorted({*found.counts, count})
        for config in content['configs']:
            name = config['name']
            if count in found.scores.get(name, {}):
                raise ValueError(
                    f'{file} has {name} with {count} labels, as a file before it: leave one out, or say the numbers with --labels'
                )
            scores = [_score(run['curve'], found.metric, file) for run in config['runs']]
            found.scores.setdefault(name, {})[count] = scores
            found.pretrained[name] = not re.fullmatch(
                r'from scratch|random weights.*', config['pretrained_on']
            )
    return found


def _load(file: Path) -> dict[str, Any]:
    if not file.is_file():
        beside = sorted(str(p) for p in file.parent.glob('*.json')) if file.parent.is_dir() else []
        raise FileNotFoundError(f'{file}: no such file. There are: {", ".join(beside) or "none"}')
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        _ = content['configs'][0]['runs'], content['metrics'][0], content['tag']
    except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f'{file} is not what tools/compare.py writes ({type(error).__name__}: {error}); needed: its WORK_DIR/TAG.json'
        ) from error
    return content


def _count(tag: str, file: str | Path) -> int:
    numbers = re.findall(r'(\d+)[-_ ]?labels?\b', tag)
    if len(numbers) != 1:
        raise ValueError(
            f"{file} has the tag {tag!r}, which names no number of labels (as '20-labels' does): say the numbers with --labels"
        )
    return int(numbers[0])


def _score(curve: Sequence[Any], metric: str, file: str | Path) -> float:
    values = [found[metric] for _, found in curve if metric in found]
    if not values:
        logged = sorted({name for _, found in curve for name in found})
        raise ValueError(f'{file}: {metric!r} was not logged; logged: {", ".join(logged)}')
    return float(values[-1])
