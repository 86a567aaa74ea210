"""What is timed as work grows: one axis, one point at a time, each in a process of its own: python -m mmdiffrep.utils.bench.growth SETTINGS.json"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mmdiffrep.utils.comparison.memory import forget_peak, peak_of_process

from .case import picture


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        about: what is done, one line.
        unit: of the numbers.
        points: usual numbers.
        expected: of time: the powers of the number that its terms have; a fit of their sum is drawn beside what is measured.
        measure: (number, settings) -> seconds of each part, by name.
    """

    about: str
    unit: str
    points: tuple[int, ...]
    expected: tuple[float, ...]
    measure: Callable[[int, SimpleNamespace], dict[str, float]]


def clock(call: Callable[[], Any], repeat: int = 1) -> float:
    """The least processor time of some calls (wall time on an accelerator)."""
    cuda = torch.cuda.is_available()
    now = time.perf_counter if cuda else time.process_time
    best = float('inf')
    for _ in range(repeat):
        begin = now()
        call()
        if cuda:
            torch.cuda.synchronize()
        best = min(best, now() - begin)
    return best


def _network(s: SimpleNamespace, taps: list[str]) -> Any:
    from .networks import backbone

    net = backbone(SimpleNamespace(model=s.model, timestep=261, device=s.device), taps)
    return net


def size(number: int, s: SimpleNamespace) -> dict[str, float]:
    net, image = _network(s, [s.tap]), picture(number, s.device)
    forget_peak()
    return dict(features=clock(lambda: net(image)))


def batch(number: int, s: SimpleNamespace) -> dict[str, float]:
    net, image = _network(s, [s.tap]), picture(s.size, s.device).expand(number, -1, -1, -1).contiguous()
    forget_peak()
    return dict(features=clock(lambda: net(image)))


def taps(number: int, s: SimpleNamespace) -> dict[str, float]:
    """``number`` taps on the way up to the same last one."""
    from .networks import backbone

    probe = backbone(SimpleNamespace(model=s.model, timestep=261, device='cpu'), [s.tap])
    names = [name for name in probe.denoiser.tap_info((s.size, s.size)) if '.resnets.' in name and name.endswith(('conv1', 'conv2', 'norm1', 'norm2'))]
    del probe
    chosen = [*names[:: max(1, len(names) // number)][: number - 1], s.tap]
    net, image = _network(s, chosen), picture(s.size, s.device)
    forget_peak()
    return dict(features=clock(lambda: net(image)))


def vocabulary(number: int, s: SimpleNamespace) -> dict[str, float]:
    """A picture asked for ``number`` names by the ODISE that ships: the first time, when they are embedded, and again."""
    import numpy as np

    from mmdiffrep.apis import OpenVocabInferencer

    ask = OpenVocabInferencer('odise_toy-unet_1200i_toyscenes-64x64', 'mmdiffrep/toy-odise', device=s.device)
    names = [f'thing {k}' for k in range(number)]
    image = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    ask(image, ['warm up', 'this'], progress=False)
    forget_peak()
    first = clock(lambda: ask(image, names, progress=False))
    again = clock(lambda: ask(image, names, progress=False), repeat=3)
    return {'names embedded': max(first - again, 0.0), 'a picture': again}


def cache(number: int, s: SimpleNamespace) -> dict[str, float]:
    """``number`` entries of two maps, 24 KiB: written, opened by a new run, and up to 1000 of them read and checked."""
    from mmdiffrep.diffusion.feature_store import FeatureStore

    maps = [torch.randn(1, 96, 8, 8), torch.randn(1, 24, 16, 16)]
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0))[:1000].tolist()
    with tempfile.TemporaryDirectory(dir=s.folder) as folder:
        store = FeatureStore('growth', folder)
        forget_peak()

        def write() -> None:
            for k in range(number):
                maps[0][0, 0, 0, 0] = k % 2048
                store.put(f'image {k}', (64, 64), store.laid_out(maps))
            store.close()

        written = clock(write)
        opened: list[FeatureStore] = []
        again = clock(lambda: opened.append(FeatureStore('growth', folder)))

        def read() -> None:
            for k in order:
                found = opened[0].find(f'image {k}', (64, 64))
                assert found is not None and opened[0].images[found].maps[0].sum().isfinite()

        return {'all written': written, 'opened': again, 'one of them read': clock(read) / len(order)}


AXES = dict(
    size=Axis("an image's features, by its side", 'pixels', (256, 384, 512, 768, 1024), (2, 4), size),
    batch=Axis("a batch's features", 'images', (1, 2, 4, 8), (1,), batch),
    taps=Axis('features of an image at several places of the network', 'taps', (1, 2, 4, 8, 16), (0,), taps),
    vocabulary=Axis('a picture asked for names (toy-odise)', 'names', (10, 100, 1000, 10000), (0, 1), vocabulary),
    cache=Axis('entries in a folder of kept features', 'entries', (100, 1000, 10000, 100000), (0, 1), cache),
)


def main() -> None:
    settings = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(settings.threads)
    cuda = torch.cuda.is_available() and settings.device != 'cpu'
    with torch.inference_mode(settings.axis not in ('vocabulary', 'cache')):
        before = torch.cuda.memory_allocated() if cuda else 0
        seconds = AXES[settings.axis].measure(settings.number, settings)
    peak = torch.cuda.max_memory_allocated() - before if cuda else peak_of_process()
    print(json.dumps(dict(seconds=seconds, peak=peak)))


if __name__ == '__main__':
    main()
