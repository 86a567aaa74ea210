"""What a sweep is scored by: classes of images, classes of pixels, corresponding points."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mmdiffrep.datasets.pairs import KeypointPairs
from mmdiffrep.diffusion.pixel_sampling import sample_pixels
from mmdiffrep.evaluation.linear_probe import linear_predictions, linear_probe
from mmdiffrep.evaluation.probes import knn_probe, logistic_probe
from mmdiffrep.matching import match_points
from mmdiffrep.models.backbones.diffusion_backbone import IMAGENET_MEAN, IMAGENET_STD
from mmdiffrep.registry import DATASETS, MODELS

from .network import backbone_config

Rows = list[Tensor]  # each tap's (n, C)
TOY_PAIRS = 'data/toyscenes/pairs/pairs.json'
PROBES = ('linear', 'knn', 'logistic', 'segmentation', 'correspondence')


class Task(ABC):
    """Images, what is kept of their maps, and how that is scored."""

    metric: str

    @abstractmethod
    def batches(self, part: str) -> Iterator[tuple[Tensor, Any]]:
        """Preprocessed images (B, 3, H, W) of ``'train'`` or ``'val'``, and what belongs to them."""

    @abstractmethod
    def count(self, part: str) -> int:
        """How many images."""

    @abstractmethod
    def keep(self, maps: Sequence[Tensor], about: Any, size: tuple[int, int]) -> Rows:
        """A batch's maps -> the rows that are kept of each."""

    @abstractmethod
    def rows(self, part: str) -> int:
        """At most so many rows."""

    @abstractmethod
    def score(self, train: Tensor | None, val: Tensor, seed: int) -> float:
        """Of one tap's rows."""

    def pixels(self, images: Tensor) -> list[Tensor]:
        """Maps that hold the colours alone, to compare with."""
        return [images]


class FromConfig(Task):
    """Images of a config's data loaders, training images as validation images are prepared."""

    def __init__(self, cfg: Any, train: int | None, val: int | None, batch_size: int, device: str) -> None:
        self.batch_size = batch_size
        self.preprocessor = _preprocessor(cfg, device)
        self.data = {'train': _spread(self._dataset(cfg, 'train'), train), 'val': _spread(self._dataset(cfg, 'val'), val)}

    @abstractmethod
    def _dataset(self, cfg: Any, part: str) -> Any:
        """The images of ``'train'`` or ``'val'``."""

    def count(self, part: str) -> int:
        return len(self.data[part])

    def batches(self, part: str) -> Iterator[tuple[Tensor, Any]]:
        for batch in DataLoader(self.data[part], self.batch_size, collate_fn=pseudo_collate):
            data = self.preprocessor(batch, False)
            yield data['inputs'], data['data_samples']


class Classification(FromConfig):
    """Global average pooling; a linear layer, neighbours, or logistic regression."""

    def __init__(self, *args: Any, probe: str = 'linear', epochs: int = 15, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.probe, self.epochs, self.metric = probe, epochs, f'accuracy of the {probe} probe, %'
        self.labels = {part: torch.tensor(_labels(data)) for part, data in self.data.items()}

    def _dataset(self, cfg: Any, part: str) -> Any:
        own, val = (dict(cfg[f'{p}_dataloader'].dataset) for p in (part, 'val'))
        for key in ('transforms', 'size', 'short_side'):
            own.pop(key, None)
            if key in val:
                own[key] = val[key]
        return DATASETS.build(own)

    def rows(self, part: str) -> int:
        return self.count(part)

    def keep(self, maps: Sequence[Tensor], about: Any, size: tuple[int, int]) -> Rows:
        return [m.float().mean((2, 3)).cpu() for m in maps]

    def score(self, train: Tensor | None, val: Tensor, seed: int) -> float:
        assert train is not None
        given = (train, self.labels['train'], val, self.labels['val'])
        if self.probe == 'linear':
            return linear_probe(*given, epochs=self.epochs, seed=seed)
        return knn_probe(*given) if self.probe == 'knn' else logistic_probe(*given)

    def pixels(self, images: Tensor) -> list[Tensor]:
        # the average would be one colour: 8×8 cells, as channels
        return [F.adaptive_avg_pool2d(images, 8).flatten(1)[:, :, None, None]]


class Segmentation(FromConfig):
    """Features sampled at labelled pixels, drawn once an image; a linear layer; mean IoU over the drawn pixels."""

    metric = 'mIoU of a linear probe at drawn pixels, %'

    def __init__(self, *args: Any, epochs: int = 15, pixels: int = 200, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epochs, self.drawn, self.ignore_index = epochs, pixels, ignore_index
        self.labels: dict[str, list[Tensor]] = {'train': [], 'val': []}
        self.part = 'train'

    def _dataset(self, cfg: Any, part: str) -> Any:
        own, val = (dict(cfg[f'{p}_dataloader'].dataset) for p in (part, 'val'))
        while 'dataset' in own:  # LabelledPixels and the like
            own = dict(own['dataset'])
        return DATASETS.build(dict(own, pipeline=val['pipeline']))

    def rows(self, part: str) -> int:
        return self.count(part) * self.drawn

    def batches(self, part: str) -> Iterator[tuple[Tensor, Any]]:
        self.part, self.labels[part] = part, []
        yield from super().batches(part)

    def keep(self, maps: Sequence[Tensor], about: Any, size: tuple[int, int]) -> Rows:
        kept: list[list[Tensor]] = [[] for _ in maps]
        for b, sample in enumerate(about):
            labels = sample.gt_sem_seg.data[0].cpu().numpy()
            places = np.flatnonzero(labels != self.ignore_index)
            # the same pixels of an image at every cell
            draws = np.random.default_rng(zlib.crc32(labels.tobytes()))
            places = np.sort(draws.permutation(places)[: self.drawn])
            y, x = (torch.from_numpy(v) for v in np.divmod(places, labels.shape[1]))
            for rows, m in zip(kept, maps):
                rows.append(sample_pixels([m[b].permute(1, 2, 0).cpu().contiguous()], y, x, labels.shape))
            self.labels[self.part].append(torch.from_numpy(labels.ravel()[places].astype(np.int64)))
        return [torch.cat(rows) for rows in kept]

    def score(self, train: Tensor | None, val: Tensor, seed: int) -> float:
        assert train is not None
        truth = torch.cat(self.labels['val'])
        found = linear_predictions(train, torch.cat(self.labels['train']), val, truth, epochs=self.epochs, seed=seed)
        shares = []
        for k in truth.unique():
            both = int(((found == k) & (truth == k)).sum())
            shares.append(both / int(((found == k) | (truth == k)).sum()))
        return 100 * float(np.mean(shares))


class Correspondence(Task):
    """PCK@α per point by cosine, as ``mmdiffrep.PointMatcher`` and ``mmdiffrep.PCK`` measure it: pairs of images with points, as
    ``tools/make_toyscenes.py`` writes them.

    A point is right if the pixel that is most alike lies within α · max(height, width) of the target's box.
    """

    def __init__(self, cfg: Any, file: str | None, count: int | None, device: str, alpha: float = 0.1) -> None:
        own = cfg.test_dataloader.dataset if matches_points(cfg) else None
        if file is None and own is not None:
            data = DATASETS.build(own)
        else:
            path = Path(file or TOY_PAIRS)
            if not path.is_file():
                raise FileNotFoundError(f'--pairs {path}: no such file; expected a list of pairs with source_points and target_points')
            data = KeypointPairs(path.parent, path.name)
        self.pairs = _spread(data, count)
        self.alpha, self.metric = alpha, f'PCK@{alpha:g} per point (target box), %'
        size = cfg.model.get('size') if own is not None else None
        self.size = (size, size) if isinstance(size, int) else size
        self.preprocessor = _preprocessor(cfg, device) if own is None else _as_the_backbone_expects(backbone_config(cfg), device)

    def count(self, part: str) -> int:
        return 2 * len(self.pairs) if part == 'val' else 0

    def rows(self, part: str) -> int:
        if part != 'val':
            return 0
        data, numbers = (self.pairs.dataset, self.pairs.indices) if isinstance(self.pairs, Subset) else (self.pairs, range(len(self.pairs)))
        return sum(len(data.pairs[i]['source_points']) for i in numbers)

    def batches(self, part: str) -> Iterator[tuple[Tensor, Any]]:
        for i in range(len(self.pairs)) if part == 'val' else []:
            item = self.pairs[i]
            images = [item['inputs'][side] for side in ('source', 'target')]
            if self.size is not None:
                images = [
                    F.interpolate(x[None].float(), tuple(self.size), mode='bicubic', antialias=True)[0].clamp(0, 255) for x in images
                ]
            if images[0].shape != images[1].shape:
                sample = item['data_samples']
                raise ValueError(
                    f'{sample.source_path} and {sample.target_path} differ in size: give the config model.size, to which images are resized'
                )
            yield self.preprocessor(dict(inputs=images), False)['inputs'], item['data_samples']

    def keep(self, maps: Sequence[Tensor], about: Any, size: tuple[int, int]) -> Rows:
        """Each point's distance to its match, in units of the box's longer side: (points, 1)."""
        box = about.metainfo.get('target_box')
        if box is None:
            raise ValueError(f'{about.target_path} has no target_box, by which PCK is measured here')
        found = []
        for m in maps:
            match = match_points(m[0].cpu(), m[1].cpu(), about.source_points, about.source_shape, about.target_shape).points
            distance = (match - about.target_points).norm(dim=1) / max(box[2] - box[0], box[3] - box[1])
            found.append(distance[:, None].float())
        return found

    def score(self, train: Tensor | None, val: Tensor, seed: int) -> float:
        return 100 * float((val <= self.alpha).float().mean())


def make_task(cfg: Any, args: Any) -> Task:
    """The task that a config has, or that ``args.probe`` names.

    Raises:
        ValueError: a config without data, or a probe that its data have no labels for.
    """
    if args.probe == 'correspondence' or (args.probe is None and matches_points(cfg)):
        return Correspondence(cfg, args.pairs, args.val, args.device)
    missing = [f'{p}_dataloader' for p in ('train', 'val') if not cfg.get(f'{p}_dataloader')]
    if missing:
        raise ValueError(f'the config has no {" and no ".join(missing)}, and a probe learns from labelled images')
    segments = cfg.get('default_scope') == 'mmseg'
    probe = args.probe or ('segmentation' if segments else 'linear')
    if (probe == 'segmentation') != segments:
        raise ValueError(
            f"--probe {probe} does not fit a config of {'mmseg, whose images have a class for each pixel' if segments else 'classification'}; "
            f"allowed: {['segmentation'] if segments else ['linear', 'knn', 'logistic']}, 'correspondence'"
        )
    common: tuple = (cfg, args.train, args.val, args.batch_size, args.device)
    if segments:
        return Segmentation(*common, epochs=args.epochs, pixels=args.pixels)
    return Classification(*common, probe=probe, epochs=args.epochs)


def matches_points(cfg: Any) -> bool:
    """Whether a config's model matches points (configs/dift)."""
    return str(cfg.model.get('type')).rpartition('.')[2] == 'PointMatcher'


def _as_the_backbone_expects(backbone: Any, device: str) -> Any:
    """Normalisation of BGR images for a backbone that stands in no toolkit's model."""
    rgb = not backbone.get('bgr', False)
    mean, std = backbone.get('image_mean', IMAGENET_MEAN), backbone.get('image_std', IMAGENET_STD)
    return MODELS.build(dict(type='mmengine.ImgDataPreprocessor', mean=list(mean), std=list(std), bgr_to_rgb=rgb)).to(device)


def _preprocessor(cfg: Any, device: str) -> Any:
    """The config's data preprocessor, without padding."""
    found = dict(cfg.model.get('data_preprocessor') or dict(type='mmengine.ImgDataPreprocessor', bgr_to_rgb=True))
    if str(found.get('type')).endswith('SegDataPreProcessor'):
        found.update(size=None, size_divisor=None, test_cfg=None)
    return MODELS.build(found).to(device)


def _spread(data: Any, count: int | None) -> Any:
    """So many of a data set's items, from all of it."""
    if count is None or count >= len(data):
        return data
    if count < 1:
        raise ValueError(f'{count} images were asked for; allowed: 1 and more')
    return Subset(data, np.linspace(0, len(data) - 1, count).round().astype(int).tolist())


def _labels(data: Any) -> list[int]:
    if isinstance(data, Subset):
        labels = data.dataset.labels
        return [labels[i] for i in data.indices]
    return data.labels

