"""OpenVocabInferencer: images and words in, named segments out."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.utils import ProgressBar

from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.registry import MODELS
from mmdiffrep.utils.cli import type_name

from .building import chosen_device, image_steps
from .inputs import gather, vocabularies
from .segmentation_result import ResultFolder, SegmentationResult
from .trained import load_trained, read_config, weight_file

Item = Path | np.ndarray


class OpenVocabInferencer:
    """Asks a trained ``mmdiffrep.OpenVocabSegmentor`` for anything that words can say.

    >>> inferencer = OpenVocabInferencer(config, weights)                                 # doctest: +SKIP
    >>> result = inferencer('photo.jpg', 'cat, kitten; grass (stuff)')                    # doctest: +SKIP
    >>> [(segment['name'], segment['score']) for segment in result.segments]              # doctest: +SKIP
    >>> results = inferencer('photos/', 'coco-panoptic', batch_size=4, out_dir='found')   # doctest: +SKIP

    Args:
        config: a config file, the name of one that comes with the package, or an mmengine ``Config``.
        weights: .pth or .safetensors of what was trained, a folder with them, an address, or a short name; None: nothing was trained,
            and the result says nothing.
        device: default: the accelerator where there is one.

    Raises:
        FileNotFoundError: config or weights are not there.
        ValueError: the config is of another model, the weights of another config, or there is no such device.
    """

    def __init__(
        self,
        config: str | Path | Config,
        weights: str | Path | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        cfg = read_config(config)
        # mistakes first: building takes seconds
        self.device = chosen_device(device)
        self.weights = weight_file(weights) if weights is not None else None
        _check_model(cfg)
        loader, *rest = image_steps(cfg)
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet')):
            self._load_file, self._prepare = Compose([loader]), Compose(rest)
            self.model = revert_sync_batchnorm(MODELS.build(cfg.model))
        if self.weights is not None:
            load_trained(self.model, self.weights)
        else:
            warnings.warn('without weights the trained part of the model is random', stacklevel=2)
            self.model.init_weights()
        self.model.to(self.device).eval()

    @property
    def vocabulary(self) -> Vocabulary:
        """What is asked for where nothing else is said: what the model was trained on."""
        return self.model.vocabulary

    def __call__(
        self,
        images: Any,
        vocabulary: Any = None,
        batch_size: int = 1,
        out_dir: str | Path | None = None,
        progress: bool = True,
        channel_order: str = 'bgr',
    ) -> SegmentationResult | list[SegmentationResult]:
        """The result of an image, or a list of those of several.

        Args:
            images: a file, a folder, an array (H, W, 3) uint8, or a list of such. A folder's images are taken in the order of their
                names, without those of its subfolders.
            vocabulary: anything that :meth:`Vocabulary.parse` takes, or a list of such, one an image, where an element is a
                :class:`Vocabulary` or a string with ``';'``. Default: what the model was trained on.
            batch_size: images at a time. Those of a batch are padded to one size.
            out_dir: where to write files, see :class:`ResultFolder`.
            progress: a bar on the error output, where there are several images.
            channel_order: of arrays, ``'bgr'`` or ``'rgb'``.

        Raises:
            FileNotFoundError: an image is not there.
            ValueError: what was given does not fit, or no image can be read. Of several, those that cannot are left out with a warning.
        """
        folder = ResultFolder(out_dir) if out_dir is not None else None
        results = []
        items, single = gather(images, channel_order)
        for result in self._results(items, vocabulary, batch_size, progress):
            results.append(result)
            if folder is not None:
                folder.add(result)
        if folder is not None:
            folder.finish()
        return results[0] if single else results

    def iterate(
        self,
        images: Any,
        vocabulary: Any = None,
        batch_size: int = 1,
        progress: bool = True,
        channel_order: str = 'bgr',
    ) -> Iterator[SegmentationResult]:
        """As :meth:`__call__`, one result after the other: with any number of images no more than a batch is in memory."""
        return self._results(gather(images, channel_order)[0], vocabulary, batch_size, progress)

    def _results(
        self, items: Sequence[Item], vocabulary: Any, batch_size: int, progress: bool
    ) -> Iterator[SegmentationResult]:
        """What is asked is checked at once, before the first result."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                f'batch_size={batch_size!r} does not fit; allowed: a whole number of at least 1'
            )
        asked = vocabularies(vocabulary, len(items))
        return self._iterate(list(zip(items, asked)), batch_size, progress)

    def _iterate(
        self, jobs: Sequence[tuple[Item, Vocabulary | None]], batch_size: int, progress: bool
    ) -> Iterator[SegmentationResult]:
        bar = ProgressBar(len(jobs), file=sys.stderr) if progress and len(jobs) > 1 else None
        readable = 0
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            loaded = [one for one in (self._load(*job) for job in part) if one is not None]
            readable += len(loaded)
            if loaded:
                yield from self._segment(loaded)
            if bar is not None:
                bar.update(len(part))
        if bar is not None:
            print(file=sys.stderr)
        if not readable:
            names = [str(item) for item, _ in jobs if isinstance(item, Path)]
            raise ValueError(f'none of {names[:5]} is a readable image ({len(jobs)} in all)')

    def _load(
        self, item: Item, vocabulary: Vocabulary | None
    ) -> tuple[dict[str, Any], np.ndarray, Path | None] | None:
        """The model's input, the image as RGB, and its path; None for what is no readable image."""
        if isinstance(item, Path):
            try:
                data = self._load_file(dict(img_path=str(item), img_id=0))
            except Exception as error:  # each decoder has errors of its own
                data, why = None, f' ({type(error).__name__})'
            else:
                why = ''
            if data is None:
                warnings.warn(f'{item} is not a readable image{why}; it is left out', stacklevel=4)
                return None
        else:
            size = item.shape[:2]
            data = dict(img=item, img_path=None, img_id=0, img_shape=size, ori_shape=size)
        rgb = np.ascontiguousarray(data['img'][..., ::-1]).astype(np.uint8)
        packed = self._prepare(data)
        if vocabulary is not None:
            packed['data_samples'].set_metainfo(dict(vocabulary=vocabulary))
        return packed, rgb, item if isinstance(item, Path) else None

    def _segment(
        self, loaded: Sequence[tuple[dict[str, Any], np.ndarray, Path | None]]
    ) -> list[SegmentationResult]:
        with torch.no_grad():
            samples = self.model.test_step(pseudo_collate([packed for packed, _, _ in loaded]))
        return [_result(sample, rgb, path) for sample, (_, rgb, path) in zip(samples, loaded)]


def _check_model(cfg: Config) -> None:
    kind = type_name(cfg.model) if 'model' in cfg else 'no model'
    if kind != 'OpenVocabSegmentor':
        raise ValueError(
            f'the config {cfg.filename or ""} has {kind}; allowed: mmdiffrep.OpenVocabSegmentor (see configs/odise)'
        )
    if not (cfg.model.get('test_cfg') or {}).get('panoptic', True):
        raise ValueError(
            'the config has model.test_cfg.panoptic=False: segments come from the panoptic result'
        )


def _result(sample: Any, rgb: np.ndarray, path: Path | None) -> SegmentationResult:
    vocabulary, seen = sample.metainfo['vocabulary'], sample.metainfo['seen']
    segments = [
        dict(
            id=int(s['id']),
            category=int(s['category']),
            name=vocabulary.names[s['category']],
            isthing=bool(s['isthing']),
            score=float(s['score']),
            area=int(s['area']),
            bbox=[int(v) for v in s['bbox']],
            seen=bool(seen[s['category']]),
        )
        for s in sample.pred_panoptic['segments']
    ]
    instances = sample.get('pred_instances')
    semantic = sample.get('pred_sem_seg')
    return SegmentationResult(
        ids=sample.pred_panoptic['ids'].cpu().numpy().astype(np.int32),
        segments=segments,
        vocabulary=vocabulary,
        image=rgb,
        semantic=None if semantic is None else semantic.data[0].cpu().numpy(),
        instances=None
        if instances is None
        else {key: instances[key].cpu().numpy() for key in ('scores', 'labels', 'masks', 'bboxes')},
        path=path,
    )
