"""UncertainSegmenter: image files in, labels and how uncertain they are out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from mmdiffrep.registry import DATASETS, MODELS
from mmdiffrep.utils.comparison.entries import plain

from .building import chosen_device, image_steps, test_dataset
from .trained import load_trained, read_config, weight_file


class UncertainSegmenter:
    """A trained segmentor whose data samples have ``image_uncertainty`` (``mmdiffrep.EnsembleSegmentor``).

    Args:
        config: a config file, the name of one that comes with the package, or an mmengine ``Config``.
        weights: what was trained, see :func:`weight_file`.
        device: default: the accelerator where there is one.

    Attributes:
        metainfo: ``classes`` and ``palette`` of its test data set.
        made_by: digests of model, test pipeline and weights: predictions of equal ones are equal.

    Raises:
        FileNotFoundError: config or weights are not there.
        ValueError: the weights are of another config, or the config names no classes.
    """

    def __init__(
        self,
        config: str | Path | Config,
        weights: str | Path,
        device: str | torch.device | None = None,
    ) -> None:
        cfg = read_config(config)
        self.device, self.weights = chosen_device(device), weight_file(weights)
        steps = image_steps(cfg)
        self.made_by = dict(
            model=_short(json.dumps([plain(cfg.model), plain(steps)], sort_keys=True).encode()),
            weights=_short(self.weights.read_bytes()),
        )
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
            self.metainfo = _metainfo(cfg)
            self._prepare = Compose(steps)
            self.model = revert_sync_batchnorm(MODELS.build(cfg.model))
        load_trained(self.model, self.weights)
        self.model.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, image: str | Path) -> tuple[np.ndarray, float]:
        """Labels (H, W) int64 in the image's size, and its uncertainty.

        Raises:
            ValueError: no readable image, or the model does not say how uncertain it is.
        """
        try:
            packed = self._prepare(dict(img_path=str(image)))
        except Exception as error:  # each decoder has errors of its own
            raise ValueError(
                f'{image} is not a readable image ({type(error).__name__}: {error}). Remove it'
            ) from error
        (sample,) = self.model.test_step(pseudo_collate([packed]))
        if 'image_uncertainty' not in sample:
            raise ValueError(
                f'{type(self.model).__name__} does not say how uncertain it is: its data samples have {sorted(sample.keys())}; needed: '
                'image_uncertainty, as mmdiffrep.EnsembleSegmentor gives it (configs/ddpm_seg)'
            )
        labels = sample.pred_sem_seg.data.cpu().numpy()
        return labels.reshape(labels.shape[-2:]).astype(np.int64), float(sample.image_uncertainty)


def _metainfo(cfg: Config) -> dict[str, Any]:
    """Classes and colours; the files of the data set are not needed."""
    data = test_dataset(cfg)
    if not data:
        raise ValueError('the config has no test_dataloader with a data set: it names no classes')
    found = DATASETS.build({**data, 'lazy_init': True, 'pipeline': [], 'test_mode': False}).metainfo
    if not found.get('classes'):
        raise ValueError(
            f'the test data set ({data.get("type")}) has no classes: give it metainfo=dict(classes=[…])'
        )
    return found


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
