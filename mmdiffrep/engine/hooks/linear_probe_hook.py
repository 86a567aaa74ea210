"""LinearProbeHook: how well a linear layer reads classes off a network while it is being pre-trained (DDAE, Xiang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook
from torch import Tensor
from torch.utils.data import DataLoader

from mmdiffrep.diffusion.seeding import seeded
from mmdiffrep.diffusion.taps import Tap, check_tap
from mmdiffrep.engine.saving import averaged_model, generative_model, left_over
from mmdiffrep.evaluation.linear_probe import linear_probe, pooled_features
from mmdiffrep.registry import DATASETS, HOOKS


@HOOKS.register_module()
class LinearProbeHook(Hook):
    """Every ``interval`` iterations, and at the end, the accuracy of a linear layer on pooled frozen features of the EMA weights.

    After DDAE: one timestep, one tap, global average pooling in fp32, one linear layer, Adam, cosine rate. Unlike there, features are
    computed once and standardised, so without augmentation and with one draw of the noise. Scalars ``probe/<tap>@<t>`` go to the visualiser.

    Args:
        train, val: data sets of ``dict(inputs, label)``, e.g. ``dict(type='mmdiffrep.ImageFolder', labels=True, random=False, …)``.
        taps, timesteps: every pair is scored.
        epochs, lr, batch_size: of the linear layer's training.
    """

    priority = 'LOW'

    def __init__(
        self,
        train: Mapping[str, Any],
        val: Mapping[str, Any],
        taps: Sequence[str],
        timesteps: Sequence[float] = (10,),
        interval: int = 5000,
        epochs: int = 15,
        lr: float = 1e-3,
        batch_size: int = 128,
        seed: int = 0,
    ) -> None:
        if not taps or not timesteps:
            raise ValueError(f'taps={list(taps)}, timesteps={list(timesteps)}: give at least one of each')
        self.data = dict(train=train, val=val)
        self.taps, self.timesteps, self.interval = list(taps), list(timesteps), interval
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed
        self.best: dict[str, float] = {}

    @master_only
    def before_train(self, runner: Any) -> None:
        """Wrong settings are reported before hours of training."""
        model = generative_model(runner)
        for tap in self.taps:
            check_tap(model.network, Tap.parse(tap))
        for t in self.timesteps:
            model.schedule.check_timesteps(torch.tensor([t]))
        self.sets = {name: DATASETS.build(dict(config)) for name, config in self.data.items()}
        if any('label' not in data[0] for data in self.sets.values()):
            raise ValueError('the probe needs labelled images: set labels=True in its data sets')
        classes = [getattr(data, 'classes', None) for data in self.sets.values()]
        if classes[0] != classes[1]:
            raise ValueError(f'the probe trains on classes {classes[0]} and is scored on {classes[1]}: give the same folders')

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.probe(runner, runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        if left_over(runner, self.interval):
            self.probe(runner, runner.iter)

    @master_only
    def probe(self, runner: Any, step: int) -> None:
        """Score every tap and timestep; the random numbers of training are left alone."""
        pretrainer = averaged_model(runner)
        scores = {}
        for t in self.timesteps:
            with seeded(self.seed):
                train, val = (self._features(pretrainer, self.sets[name], t) for name in ('train', 'val'))
                for tap in self.taps:
                    accuracy = linear_probe(
                        train[0][tap], train[1], val[0][tap], val[1],
                        epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, seed=self.seed,
                    )  # fmt: skip
                    scores[f'probe/{tap}@{t:g}'] = accuracy
        self.best = max(self.best, scores, key=lambda s: max(s.values(), default=0.0))
        runner.visualizer.add_scalars(scores, step=step)
        runner.logger.info(f'Linear probe at {step} iterations: ' + ', '.join(f'{k[6:]} {v:.2f}' for k, v in scores.items()))

    def _features(self, pretrainer: Any, data: Any, t: float) -> tuple[dict[str, Tensor], Tensor]:
        loader = DataLoader(data, self.batch_size)
        model, maps, labels = pretrainer.model, {tap: [] for tap in self.taps}, []
        for batch in loader:
            images = pretrainer.data_preprocessor(batch, False)['inputs']
            found = pooled_features(model, images, t, self.taps)
            for tap, value in found.items():
                maps[tap].append(value.cpu())
            labels.append(batch['label'])
        return {tap: torch.cat(values) for tap, values in maps.items()}, torch.cat(labels)
