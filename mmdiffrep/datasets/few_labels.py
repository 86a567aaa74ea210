"""Few labels: which images of a data set are taken, and a subset of any data set of mmseg."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS


def chosen(count: int, num_labels: int | None, subset_seed: int = 0) -> list[int]:
    """Which of ``count`` labelled images are taken: places in ascending order.

    Drawn without repetition; for one seed those of N are among those of N + 1, so that curves over N compare like with like.

    Args:
        num_labels: how many; None: all.

    Raises:
        ValueError: fewer are there than are asked for, or none is asked for.
    """
    if num_labels is None:
        return list(range(count))
    if not 0 < num_labels <= count:
        raise ValueError(
            f'num_labels={num_labels} was asked of {count} labelled images; allowed: 1 to {count}'
        )
    order = np.random.default_rng(subset_seed).permutation(count)
    return sorted(int(i) for i in order[:num_labels])


@DATASETS.register_module()
class LabelSubset(Dataset):
    """A seeded subset of N labelled images of any data set of mmseg (or mmengine); everything else is the data set's.

    The choice is that of ``SegFolder(num_labels=, subset_seed=)``: the same N images of the same files.

    Args:
        dataset: the config of a data set that derives from mmengine's ``BaseDataset``, or one that is built.
        num_labels: so many images; None: all.
        subset_seed: which ones. The subset of N is part of the subset of N + 1.

    Raises:
        ValueError: fewer images are there than are asked for, or the data set is of another kind.
    """

    def __init__(self, dataset: Any, num_labels: int | None = None, subset_seed: int = 0) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        if not hasattr(self.dataset, 'get_subset'):
            raise ValueError(
                f'LabelSubset takes data sets that derive from mmengine.BaseDataset, got {type(self.dataset).__name__}. Put it '
                'around the innermost one: other wrappers go around it'
            )
        self.num_labels, self.subset_seed = num_labels, subset_seed
        self._cut = False
        if self.dataset._fully_initialized:
            self.full_init()

    def full_init(self) -> None:
        """Read the data set's list, if that has not been done, and take the subset."""
        if not self._cut:
            self.dataset.full_init()
            places = chosen(len(self.dataset), self.num_labels, self.subset_seed)
            _forget_copies(self.dataset)
            self.dataset = self.dataset.get_subset(places)
            self._cut = True

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def __len__(self) -> int:
        self.full_init()
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self.full_init()
        return self.dataset[index]

    def get_data_info(self, index: int) -> dict[str, Any]:
        self.full_init()
        return self.dataset.get_data_info(index)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _forget_copies(dataset: Any) -> None:
    """mmengine (0.10) notes what it has copied in a default argument, by ids that freed objects leave to others: a copy could get a stranger's parts."""
    for memo in getattr(getattr(dataset, '_copy_without_annotation', None), '__defaults__', None) or ():
        if isinstance(memo, dict):
            memo.clear()
