"""A whole benchmark: processes that take turns, medians and spreads, and what is written of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmdiffrep.utils.files import write
from mmdiffrep.utils.taps import format_table
from mmdiffrep.visualization import write_picture

from .scenarios import SCENARIOS, STOCK

GIB = 2**30


@dataclass
class Outcome:
    """One implementation of one scenario.

    Attributes:
        seconds: of a call, one for each round.
        images: of a call.
        peak, beside: bytes at the peak, with what the process had when it was built, and beside it; the largest of the rounds.
        flops: of a call; None: not counted.
    """

    scenario: str
    implementation: str
    seconds: list[float] = field(default_factory=list)
    images: int = 1
    peak: int = 0
    beside: int = 0
    flops: int | None = None

    def add(self, measured: Mapping[str, Any]) -> None:
        """One round more."""
        self.seconds.append(measured['seconds'])
        self.images = measured['images']
        self.peak, self.beside = max(self.peak, measured['peak']), max(self.beside, measured['beside'])
        self.flops = measured['flops'] or self.flops

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        return max(self.seconds) - min(self.seconds)


def run(
    names: Sequence[str], settings: Mapping[str, Any], rounds: int, stock: bool, say: Callable[[str], None]
) -> tuple[list[Outcome], dict[str, float], dict[str, str]]:
    """Measure scenarios, implementations taking turns: A B A B. One that fails is left out, and the rest goes on.

    Args:
        settings: of :mod:`scenarios`.
        stock: networks for scale, too.

    Returns:
        What was measured; for each scenario by how much its first two answers differ, as a share of the largest value; for each that failed why.
    """
    outcomes, differences, failures = [], {}, {}
    total = sum(len(_implementations(name, stock)) for name in names) * rounds
    done, begin = 0, time.perf_counter()
    def progress(line: str) -> None:
        left = (time.perf_counter() - begin) / max(done, 1) * (total - done)
        say(f'[{done}/{total}] {line}; about {left / 60:.0f} min left')

    for name in names:
        implementations = _implementations(name, stock)
        found = {i: Outcome(name, i) for i in implementations}
        answers: dict[str, dict[str, torch.Tensor]] = {}
        own = {key: settings[key] or getattr(SCENARIOS[name], key) for key in ('model', 'size', 'batch')}
        start = done
        try:
            with contextlib.ExitStack() as stack:
                shared = stack.enter_context(tempfile.TemporaryDirectory())
                workers = {
                    i: stack.enter_context(Worker({**settings, **own, 'scenario': name, 'implementation': i, 'shared': shared}))
                    for i in implementations
                }
                for number, implementation in itertools.product(range(rounds), implementations):
                    measured, answers[implementation] = workers[implementation].measure(count=number == rounds - 1)
                    found[implementation].add(measured)
                    done += 1
                    progress(f'{name}, {implementation}: {measured["seconds"]:.3g} s a call')
            if SCENARIOS[name].same:
                differences[name] = difference(*(answers[i] for i in implementations[:2]))
        except ValueError as error:
            failures[name] = str(error)
            done = start + rounds * len(implementations)
            progress(f'{name} failed: {error}')
            continue
        outcomes += found.values()
    return outcomes, differences, failures


def difference(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of two answers, as a share of the largest value of its tensor. ValueError for answers of other shapes."""
    worst = 0.0
    for name, value in second.items():
        if first[name].shape != value.shape:
            raise ValueError(f'answers differ in shape: {name} is {tuple(first[name].shape)} and {tuple(value.shape)}')
        worst = max(worst, float((first[name] - value).abs().max() / value.abs().max().clamp(min=1e-12)))
    return worst


def matrix_peak(device: str, threads: int, size: int = 1536, calls: int = 5) -> float:
    """FLOPs a second that the device reaches in a plain product of single-precision matrices."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = torch.randn(2, size, size, device=device)
    on_cpu = torch.device(device).type == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    best = float('inf')
    for _ in range(calls):
        begin = clock()
        a @ b
        if not on_cpu:
            torch.cuda.synchronize()
        best = min(best, clock() - begin)
    torch.set_num_threads(before)
    return 2 * size**3 / best


def markdown(
    outcomes: Sequence[Outcome], differences: Mapping[str, float], failures: Mapping[str, str], settings: Mapping[str, Any], peak: float
) -> str:
    """The table and what it says."""
    rows, said = [], []
    for one in outcomes:
        share = f'{100 * one.flops / one.median / peak:.0f} %' if one.flops else '–'
        rows.append([
            one.scenario, one.implementation, f'{one.median:.3g}', f'{one.spread:.2g}', f'{one.images / one.median:.3g}',
            f'{one.flops / 1e12:.3g}' if one.flops else '–', share, f'{one.peak / GIB:.2f}', f'{one.beside / GIB:.3f}',
        ])  # fmt: skip
    for name in dict.fromkeys(one.scenario for one in outcomes):
        first, second = [one for one in outcomes if one.scenario == name][:2]
        if not SCENARIOS[name].same:
            said.append(f'- {name}: {first.median:.2f} s')
            continue
        wanted = SCENARIOS[name].wanted
        goal = f' (wanted: {wanted:g}×)' if wanted else ''
        memory = f'{first.beside / second.beside:.2f} of its memory beside the model' if second.beside else ''
        said.append(
            f'- {name} ({SCENARIOS[name].about}): {second.median / first.median:.2f}× as fast as "{second.implementation}"{goal}, {memory}; '
            f'answers differ by at most {differences[name]:.1e} of the largest value'
        )
    said += [f'- {name} failed: {error}' for name, error in failures.items()]
    head = ['scenario', 'implementation', 's a call', 'spread', 'images/s', 'TFLOP', 'of peak', 'peak GiB', 'beside GiB']
    machine = (
        f'{platform.processor() or platform.machine()}, {settings["threads"]} thread(s), device {settings["device"]}, torch {torch.__version__}; '
        f'a product of matrices reaches {peak / 1e9:.0f} GFLOP/s. Seconds on a CPU are processor time.'
    )
    shown = {k: v for k, v in settings.items() if k not in ('threads', 'device')}
    lines = [format_table(head, rows, left=(0, 1)), '', *said, '', machine, '', f'Settings: {shown}']
    return '\n'.join(lines)


def drawn(outcomes: Sequence[Outcome]) -> np.ndarray:
    """How many times as long as this project's way each other one takes: bars on a logarithmic axis, (H, W, 3) uint8."""
    bars = []
    for name in dict.fromkeys(one.scenario for one in outcomes):
        ours, *others = (one for one in outcomes if one.scenario == name)
        shown = others if SCENARIOS[name].same else []
        bars += [(f'{name}\n{one.implementation}', one.median / ours.median) for one in shown if one.implementation not in STOCK]
    figure = Figure(figsize=(7, 1 + 0.5 * max(len(bars), 1)), dpi=120, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    colours = ['#D55E00' if value >= 1 else '#56B4E9' for _, value in bars]
    axes.barh(range(len(bars)), [value - 1 for _, value in bars], color=colours, left=1)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    for k, (_, value) in enumerate(bars):
        axes.text(max(value, 1) * 1.05, k, f'{value:.2g}×', va='center', fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale('log')
    axes.axvline(1, color='black', linewidth=1)
    axes.margins(x=0.15, y=0.02)
    axes.set_xlabel('time, in multiples of ours')
    axes.spines[['top', 'right']].set_visible(False)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def write_all(folder: Path, outcomes: Sequence[Outcome], text: str) -> list[Path]:
    """``benchmark.json``, ``.md`` and ``.png``."""
    write(folder / 'benchmark.json', json.dumps([vars(one) for one in outcomes], indent=1))
    write(folder / 'benchmark.md', text + '\n')
    return [folder / 'benchmark.json', folder / 'benchmark.md', write_picture(folder / 'benchmark.png', drawn(outcomes))]


def _implementations(name: str, stock: bool) -> tuple[str, ...]:
    every = SCENARIOS[name].implementations
    return every if stock else every[:2]


class Worker:
    """A process that holds one implementation, built at its first round, and measures it when it is told to.

    A context manager: the process ends with it.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Worker:
        self._folder = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self._folder.cleanup()

    def measure(self, count: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """A round: what :class:`~mmdiffrep.utils.bench.measure.Measured` gives. ValueError with the process's last words where it ended."""
        asked, answer, said = (Path(self._folder.name, name) for name in ('settings.json', 'answer.pt', 'stderr.txt'))
        if self.process is None:
            asked.write_text(json.dumps(self.settings))
            command = [sys.executable, '-m', 'mmdiffrep.utils.bench.measure', str(asked), str(answer)]
            with said.open('w') as stderr:
                self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write('count\n' if count else 'go\n')
            self.process.stdin.flush()
        # other libraries may print, too
        line = next((line for line in self.process.stdout if line.startswith('{')), None)
        if line is None:
            ended = self.process.wait()
            lines = said.read_text().strip().splitlines() or [f'ended with {ended}: killed, as when memory runs out?']
            raise ValueError(f'{self.settings["scenario"]}, {self.settings["implementation"]}: {lines[-1]}')
        return json.loads(line), torch.load(answer, weights_only=True)
