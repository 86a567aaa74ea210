"""The cells of a sweep: computed timestep by timestep, kept, and found again by an interrupted sweep."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdiffrep.evaluation.probes import agreement, effective_rank

from ..comparison.runs import load_kept
from ..files import write
from .network import SweepNetwork
from .tasks import Correspondence, Task

GIB = 2**30
SECOND_DRAW = 10_000  # added to a seed: the draw that agreement is measured with
AGREEING = 512  # images whose features two draws are compared by


@dataclass
class Cell:
    """One network, noise, seed, timestep and tap: its score, and what can be said without labels."""

    network: str
    noise: str
    seed: int
    timestep: float
    tap: str
    score: float
    rank: float | None = None
    agreement: float | None = None


@dataclass
class Plan:
    """What is to be swept."""

    networks: dict[str, SweepNetwork]
    noises: Sequence[str]
    seeds: int
    timesteps: Sequence[float]
    settings: dict[str, Any]  # all that shapes a cell: a kept one of other settings is not used

    def steps(self) -> Iterator[tuple[str, str, int, float]]:
        for name in self.networks:
            for noise in self.noises:
                for seed in range(self.seeds):
                    for t in self.timesteps:
                        yield name, noise, seed, t


def check_memory(task: Task, channels: Sequence[int], gib: float) -> float:
    """GiB of the features that are kept at once; ValueError beyond ``gib``."""
    rows = task.rows('train') + 2 * task.rows('val')  # with the second draw, of all of them at most
    width = len(channels) if isinstance(task, Correspondence) else sum(channels)
    needed = 2 * rows * width * 4 / GIB  # gathered in parts, then joined
    if needed > gib:
        raise ValueError(
            f'features of {task.count("train")} + {task.count("val")} images at {len(channels)} taps take {needed:.1f} GiB, and --memory '
            f'is {gib:g}: take fewer images (--train, --val) or taps (--taps), or allow more'
        )
    return needed


def gather(network: SweepNetwork, task: Task, part: str, count: int | None = None) -> list[Tensor]:
    """Each tap's rows of a part's images; the first ``count`` images."""
    found: list[list[Tensor]] = [[] for _ in network.taps]
    seen = 0
    device = next(network.backbone.denoiser.network.parameters()).device
    for images, about in task.batches(part):
        kept = task.keep(network(images.to(device)), about, tuple(images.shape[-2:]))
        for rows, new in zip(found, kept):
            rows.append(new)
        seen += len(images)
        if count is not None and seen >= count:
            break
    return [torch.cat(rows) if rows else torch.zeros(0, 1) for rows in found]


def compute(network: SweepNetwork, task: Task, name: str, noise: str, seed: int, t: float) -> list[Cell]:
    """All taps at one timestep: one look at every image, and a second one at some."""
    labelled = not isinstance(task, Correspondence)
    network.aim(t, dict(kind=noise, seed=seed))
    torch.manual_seed(seed)  # fresh noise draws from torch's own generator
    val = gather(network, task, 'val')
    train = gather(network, task, 'train') if labelled else [None] * len(val)
    cells = [Cell(name, noise, seed, t, tap, task.score(a, b, seed)) for tap, a, b in zip(network.taps, train, val)]
    if labelled:
        torch.manual_seed(seed + SECOND_DRAW)
        if noise != 'none':
            network.aim(t, dict(kind=noise, seed=seed + SECOND_DRAW))
        again = gather(network, task, 'val', AGREEING)
        for cell, first, second in zip(cells, val, again):
            cell.rank = effective_rank(first[: len(second)])
            cell.agreement = agreement(first[: len(second)], second)
    return cells


def sweep(plan: Plan, task: Task, folder: Path, say: Callable[[str], None]) -> list[Cell]:
    """Every cell. Finished timesteps are kept in ``folder``; a kept file that is damaged or of other settings is computed anew."""
    cells: list[Cell] = []
    steps = list(plan.steps())
    begin, done = time.monotonic(), 0
    for number, (name, noise, seed, t) in enumerate(steps):
        key = hashlib.sha256(json.dumps([plan.settings, name, noise, seed, t], sort_keys=True).encode()).hexdigest()
        file = folder / 'cells' / f'{name}_{noise}_{seed}_{t:g}.json'
        kept = _checked(load_kept(file, key))
        if kept is None and file.exists():
            say(f'{file} is of other settings or damaged: computed anew')
        if kept is None:
            kept = compute(plan.networks[name], task, name, noise, seed, t)
            write(file, json.dumps(dict(key=key, content=_sealed(kept)), indent=1))
            done += 1
        cells += kept
        best = max(kept, key=lambda cell: cell.score)
        left = (time.monotonic() - begin) / max(done, 1) * (len(steps) - number - 1)
        say(f'[{number + 1}/{len(steps)}] {name}, noise {noise}, seed {seed}, t = {t:g}: best {best.score:.1f} at {best.tap}, about {left:.0f} s left')
    return cells


def _sealed(cells: list[Cell]) -> dict[str, Any]:
    content = [asdict(cell) for cell in cells]
    return dict(cells=content, sha256=hashlib.sha256(json.dumps(content).encode()).hexdigest())


def _checked(content: Any) -> list[Cell] | None:
    """What was kept, if it is what was written."""
    if not isinstance(content, dict) or not isinstance(content.get('cells'), list):
        return None
    if hashlib.sha256(json.dumps(content['cells']).encode()).hexdigest() != content.get('sha256'):
        return None
    return [Cell(**cell) for cell in content['cells']]
