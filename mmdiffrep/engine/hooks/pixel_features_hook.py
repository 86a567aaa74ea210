"""PixelFeaturesHook: a frozen backbone looks at each training image once; a PixelEnsemble learns from what it saw."""

from __future__ import annotations

import time
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import RandomSampler

from mmdiffrep.diffusion.feature_store import FeatureStore, content_key
from mmdiffrep.models.kept_features import backbone_mark, check_frozen
from mmdiffrep.registry import HOOKS

SECONDS = 10  # between messages of progress


@HOOKS.register_module()
class PixelFeaturesHook(Hook):
    """Before training: the features of all training images. While it runs: members stop one by one, and training with the last.

    For ``mmdiffrep.EnsembleSegmentor`` on ``mmdiffrep.LabelledPixels``. Images go through the model's own data preprocessor and backbone as
    at test time, one by one.

    Args:
        folder: where features are kept, so that later runs find them; None: in memory.
        dtype: ``'fp16'`` or ``'fp32'``.
        resident: bytes of ``folder``'s files that may stay in main memory at once.

    Raises:
        ValueError: a backbone that is trained or draws fresh noise, whose features cannot be kept; a pipeline that changes images
            at random; steps that are shuffled; more than one process.
    """

    # before a checkpoint is saved, so that the last one is
    priority = 'ABOVE_NORMAL'

    def __init__(
        self, folder: str | None = None, dtype: str = 'fp16', resident: int = 2**30
    ) -> None:
        FeatureStore(
            '', None, dtype, resident
        )  # what does not fit is reported when the config is read
        self.folder, self.dtype, self.resident = folder, dtype, resident
        self._stopped = 0

    def before_train(self, runner: Any) -> None:
        from mmdiffrep.datasets import LabelledPixels
        from mmdiffrep.models.ensemble import EnsembleSegmentor

        model, data = runner.model, runner.train_dataloader.dataset
        if get_world_size() > 1:
            raise ValueError(
                'a PixelEnsemble is trained in one process: its members already share every step. Leave --launcher out'
            )
        if not isinstance(model, EnsembleSegmentor) or not isinstance(data, LabelledPixels):
            raise ValueError(
                f'PixelFeaturesHook is for mmdiffrep.EnsembleSegmentor on mmdiffrep.LabelledPixels; this run has {type(model).__name__} on '
                f'{type(data).__name__}'
            )
        if data.members != model.decode_head.members:
            raise ValueError(
                f'LabelledPixels(members={data.members}) feeds PixelEnsemble(members={model.decode_head.members}): give the same number'
            )
        check_order(runner)
        check_frozen(model)
        self.compute(model, data, runner.logger)
        loop = runner.train_loop
        if loop.max_iters > len(data):
            runner.logger.info(
                f'{data.epochs} epochs of {data.epoch_steps} steps end before max_iters={loop.max_iters}'
            )
            loop._max_iters = len(data)
        stopped = model.decode_head.stopping.stopped
        self._stopped = int(stopped.sum())
        if stopped.all():
            loop._max_iters = min(loop.max_iters, loop.iter)

    @torch.no_grad()
    def compute(self, model: Any, data: Any, logger: Any) -> None:
        """Fill the model's store."""
        store = FeatureStore(backbone_mark(model), self.folder, self.dtype, self.resident)
        noise = getattr(model.backbone, 'noise', None)
        logger.info(
            f'Features of {len(data.dataset)} images by {type(model.backbone).__name__}'
            + (f', noise: {noise}' if noise else '')
        )
        was_training = model.training
        model.eval()
        begin = spoken = time.monotonic()
        data.full_init()
        for i in range(len(data.dataset)):
            item = data.dataset[i]
            if i == 0:
                check_repeats(item, data.dataset[i])
            if data.labels_of(item).shape != data.sizes[i]:
                raise ValueError(_random(item))
            inputs = model.data_preprocessor(pseudo_collate([item]), False)['inputs']
            size = (inputs.shape[-2], inputs.shape[-1])
            store.add(
                content_key(inputs[0]), size, lambda inputs=inputs: model.extract_feat(inputs)
            )
            now = time.monotonic()
            if now - spoken > SECONDS:
                spoken = now
                left = (now - begin) / (i + 1) * (len(data.dataset) - i - 1)
                logger.info(f'Features of {i + 1}/{len(data.dataset)} images, {left:.0f} s to go')
        model.train(was_training)
        where = 'in memory' if self.folder is None else f'in {self.folder}'
        found = (
            ''
            if store.computed == len(store)
            else f', {len(store) - store.computed} of them found there'
        )
        logger.info(
            f'Features of {len(store)} images: {store.bytes / 2**20:.1f} MiB {where}{found}, {time.monotonic() - begin:.1f} s; '
            f'{len(data.labels)} labelled pixels, {data.epoch_steps} steps an epoch'
        )
        model.store = store

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        stopped = runner.model.decode_head.stopping.stopped
        count = int(stopped.sum())
        if count == self._stopped:
            return
        runner.logger.info(
            f'{count} of {len(stopped)} members have stopped after {runner.iter + 1} steps'
        )
        self._stopped = count
        if count == len(stopped):
            # as if it had been asked for no more: the last checkpoint and validation come as usual
            runner.train_loop._max_iters = runner.iter + 1


def check_order(runner: Any) -> None:
    """ValueError for a loop that does not read the steps one after the other."""
    loop, sampler = runner.train_loop, runner.train_dataloader.sampler
    if not isinstance(loop, IterBasedTrainLoop):
        raise ValueError(
            f'train_cfg is of type {type(loop).__name__}, and LabelledPixels holds all epochs one after the other: use '
            "dict(type='IterBasedTrainLoop', max_iters=...)"
        )
    if isinstance(sampler, RandomSampler) or getattr(sampler, 'shuffle', False):
        raise ValueError(
            f'train_dataloader.sampler is a shuffling {type(sampler).__name__}, and LabelledPixels has shuffled the pixels already: its '
            'items are steps, to be read in order. Give sampler=None'
        )


def check_repeats(first: dict[str, Any], second: dict[str, Any]) -> None:
    """ValueError if a pipeline gives an image differently the second time."""
    same = torch.equal(first['inputs'], second['inputs'])
    if not same or not torch.equal(
        first['data_samples'].gt_sem_seg.data, second['data_samples'].gt_sem_seg.data
    ):
        raise ValueError(_random(first))


def _random(item: dict[str, Any]) -> str:
    return (
        f'the pipeline gives {item["data_samples"].metainfo.get("img_path", "an image")} differently each time, and features are computed '
        'once: leave its random transforms out'
    )
