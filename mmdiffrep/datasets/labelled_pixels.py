"""LabelledPixels: every labelled pixel of a data set, in batches for the members of an ensemble."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from mmdiffrep.diffusion.noise import _mix as mix
from mmdiffrep.diffusion.seeding import run_seed
from mmdiffrep.registry import DATASETS

ROUNDS = 6


def shuffled(places: np.ndarray, total: int, keys: np.ndarray) -> np.ndarray:
    """Where each of ``places`` (M, n) below ``total`` goes in a permutation of 0 … total - 1 that its row's key (M,) uint64 chooses.

    A Feistel network on the next power of 4, walked until the result is below ``total``: any place of a permutation in constant time
    and memory, so that training goes on exactly where it was.
    """
    half = np.uint64(max(1, ((total - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    found, outside = places.astype(np.uint64), np.ones(places.shape, bool)
    while outside.any():
        left, right = found >> half, found & mask
        for r in range(ROUNDS):
            left, right = right, left ^ (mix(right ^ mix(keys + np.uint64(r))[:, None]) & mask)
        found = np.where(outside, left << half | right, found)
        outside = found >= total
    return found.astype(np.int64)


@DATASETS.register_module()
class LabelledPixels(Dataset):
    """Batches of labelled pixels: item k is training step k, for each member its own pixels.

    In an epoch each member sees every labelled pixel once, in an order of its own that (seed, member, epoch) alone decide; the last
    incomplete batch is dropped. An item is ``dict(pixels, epoch)``: ``pixels`` (4, M, n) int64 are number of the image, y, x, label;
    ``epoch`` counts from 0. The data set holds ``epochs`` epochs one after the other: read it in order, without shuffling.

    Args:
        dataset: config of a data set of mmseg's (or one that is built), whose pipeline ends with ``PackSegInputs`` and changes nothing at
            random: features are computed once.
        members: M.
        pixels: n, a batch.
        epochs: how many the data set holds; the runner's ``max_iters`` may end training before.
        seed: of the orders; None: the run's seed.
        class_balanced: draw a class, then one of its pixels, all equally likely, with repetition; an epoch has as many batches.
        ignore_index: label of pixels that are not labelled.
        num_labels, subset_seed: replace those of ``dataset``'s config, so that they stand where those of other models' data stand.

    Raises:
        ValueError: naming the file: a mask of another size than its image, a label outside the classes; too few labelled pixels.
    """

    def __init__(
        self,
        dataset: Any,
        members: int = 10,
        pixels: int = 64,
        epochs: int = 100,
        seed: int | None = None,
        class_balanced: bool = False,
        ignore_index: int = 255,
        **chosen: Any,
    ) -> None:
        if min(members, epochs) < 1 or pixels < 2:
            raise ValueError(
                f'members={members}, pixels={pixels}, epochs={epochs} do not fit; allowed: members and epochs from 1, pixels from 2'
            )
        dataset = _with_choice(dataset, chosen)
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        seed = run_seed() if seed is None else seed
        self.members, self.pixels, self.epochs, self.seed = members, pixels, epochs, seed
        self.class_balanced, self.ignore_index = class_balanced, ignore_index
        self.labels: np.ndarray | None = None

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read all labels, once."""
        if self.labels is not None:
            return
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()
        self.sizes: list[tuple[int, int]] = []  # (H, W) of each image
        labels, places, begin = [], [], 0
        for i in range(len(self.dataset)):
            whole = self.labels_of(self.dataset[i])
            self._check_file(i)
            where = np.flatnonzero(whole != self.ignore_index)
            labels.append(whole.ravel()[where].astype(np.int16))
            places.append(where + begin)
            self.sizes.append(whole.shape)
            begin += whole.size
        found = np.concatenate(labels) if labels else np.zeros(0, np.int16)
        if len(found) < self.pixels:
            raise ValueError(
                f'{len(self.dataset)} images have {len(found)} labelled pixels, and a batch takes pixels={self.pixels}: give more labels '
                'or smaller batches'
            )
        self.places = np.concatenate(places)
        self.begins = np.cumsum([0, *(h * w for h, w in self.sizes)])
        if self.class_balanced:
            self.by_class = np.argsort(found, kind='stable')
            self.classes, self.first, self.counts = np.unique(
                found[self.by_class], return_index=True, return_counts=True
            )
        self.labels = found

    def labels_of(self, item: dict[str, Any]) -> np.ndarray:
        """An image's labels (H, W), checked."""
        sample, image = item['data_samples'], item['inputs']
        file = (
            sample.metainfo.get('seg_map_path')
            or f'the mask of {sample.metainfo.get("img_path", "an image")}'
        )
        if 'gt_sem_seg' not in sample:
            raise ValueError(
                f'{file} was not read: the pipeline needs LoadAnnotations before PackSegInputs'
            )
        labels = sample.gt_sem_seg.data[0].numpy()
        if labels.shape != tuple(image.shape[-2:]):
            raise ValueError(
                f'{file} is {labels.shape[0]}×{labels.shape[1]} (height × width) behind the pipeline, its image '
                f'{image.shape[-2]}×{image.shape[-1]}: load the labels before the image is resized'
            )
        count = len(self.metainfo['classes'])
        wrong = sorted(
            int(k) for k in np.unique(labels) if k != self.ignore_index and not 0 <= k < count
        )
        if wrong:
            raise ValueError(
                f'{file} has the labels {wrong[:5]}, and there are {count} classes; allowed: 0 … {count - 1}, and {self.ignore_index} '
                'where nothing is labelled'
            )
        return labels

    def _check_file(self, i: int) -> None:
        """A pipeline that resizes would stretch a mask of any size over its image."""
        info = self.dataset.get_data_info(i) if hasattr(self.dataset, 'get_data_info') else {}
        image, mask = info.get('img_path'), info.get('seg_map_path')
        if not image or not mask or not Path(image).is_file() or not Path(mask).is_file():
            return  # read from elsewhere
        with Image.open(image) as a, Image.open(mask) as b:
            ours, theirs = a.size[::-1], b.size[::-1]
        if ours != theirs:
            raise ValueError(
                f'{mask} is {theirs[0]}×{theirs[1]} (height × width), its image {image} {ours[0]}×{ours[1]}: a mask must have its '
                "image's size"
            )

    @property
    def epoch_steps(self) -> int:
        """Batches of an epoch."""
        self.full_init()
        assert self.labels is not None
        return len(self.labels) // self.pixels

    def __len__(self) -> int:
        return self.epochs * self.epoch_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        if not 0 <= step < len(self):
            raise IndexError(f'step {step} of {len(self)}')
        epoch, batch = divmod(step, self.epoch_steps)
        assert self.labels is not None
        chosen = (
            self._balanced(step) if self.class_balanced else self._in_order(epoch, batch)
        )  # (M, n)
        places = self.places[chosen]
        image = np.searchsorted(self.begins, places, side='right') - 1
        widths = np.array([w for _, w in self.sizes])[image]
        y, x = np.divmod(places - self.begins[image], widths)
        pixels = np.stack([image, y, x, self.labels[chosen].astype(np.int64)])
        return dict(pixels=torch.from_numpy(pixels), epoch=epoch)

    def _in_order(self, epoch: int, batch: int) -> np.ndarray:
        keys = [
            hashlib.blake2b(f'{self.seed}/{m}/{epoch}'.encode(), digest_size=8).digest()
            for m in range(self.members)
        ]
        places = np.arange(batch * self.pixels, (batch + 1) * self.pixels)
        places = np.broadcast_to(places, (self.members, self.pixels))
        assert self.labels is not None
        return shuffled(places, len(self.labels), np.frombuffer(b''.join(keys), np.uint64))

    def _balanced(self, step: int) -> np.ndarray:
        draws = np.random.default_rng([self.seed, step]).random((2, self.members, self.pixels))
        kind = (draws[0] * len(self.classes)).astype(np.int64)
        return self.by_class[self.first[kind] + (draws[1] * self.counts[kind]).astype(np.int64)]


def _with_choice(dataset: Any, chosen: dict[str, Any]) -> Any:
    """A data set's config with other images chosen."""
    unknown = sorted(set(chosen) - {'num_labels', 'subset_seed'})
    if unknown:
        raise TypeError(f'LabelledPixels got {unknown}; allowed beside its own: num_labels, subset_seed')
    if chosen and not isinstance(dataset, dict):
        raise ValueError(f'{sorted(chosen)} were given with a data set that is built: give its config')
    return {**dataset, **chosen} if chosen else dataset
