"""FixedViews: random transforms that give each image the same few views again and again, so that kept features can be used."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS


@DATASETS.register_module()
class FixedViews(Dataset):
    """Around any data set: item i is one of ``views`` fixed outcomes of its random transforms, drawn anew each time.

    Transforms may take their randomness from Python's, NumPy's or torch's global generators: these are seeded by (seed, i, view) while the
    item is made, and put back afterwards. With one view nothing is random any more.

    Args:
        dataset: config of a data set, or one that is built; everything else is asked of it.
        views: how many of each image.
        seed: which ones.
    """

    def __init__(self, dataset: Any, views: int = 1, seed: int = 0) -> None:
        if not isinstance(views, int) or views < 1:
            raise ValueError(f'views={views!r} does not fit; allowed: a whole number of at least 1')
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.views, self.seed = views, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.view(index, int(torch.randint(self.views, ())))

    def view(self, index: int, number: int) -> Any:
        """Item ``index`` under view ``number``."""
        with seeded(self.seed, index, number):
            return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # before it is there, and while it is copied
            raise AttributeError(name)
        return getattr(self.dataset, name)


@contextlib.contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Global generators of Python, NumPy and torch (CPU) are seeded by ``numbers`` in here, and go on as before outside."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    word = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(word)
    np.random.seed(word)
    torch.manual_seed(word)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
