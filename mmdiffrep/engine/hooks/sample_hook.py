"""SampleHook: draws images while a diffusion model is being trained, so that one sees what it has learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmdiffrep.diffusion.sampling import check_request, sample
from mmdiffrep.engine.saving import generative_model, left_over
from mmdiffrep.registry import HOOKS
from mmdiffrep.visualization.samples import sample_grid


@HOOKS.register_module()
class SampleHook(Hook):
    """Every ``interval`` iterations, and at the end, a grid of images drawn from the EMA weights goes to the visualiser's backends.

    The noise is the same each time; training's random numbers are left alone.

    Args:
        count: images, or images a prompt or class.
        steps, sampler, guidance_scale, size: see :func:`mmdiffrep.diffusion.sampling.sample`.
        prompts, class_ids: a row of images for each of them.
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int = 1000,
        count: int = 16,
        steps: int = 50,
        sampler: str | None = None,
        guidance_scale: float = 1.0,
        size: int | None = None,
        prompts: Sequence[str] | None = None,
        class_ids: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        if prompts and class_ids:
            raise ValueError(f'give one of prompts={list(prompts)} and class_ids={list(class_ids)}')
        if count < 1 or steps < 1:
            raise ValueError(f'count={count}, steps={steps} do not fit; allowed: at least 1')
        self.interval, self.count, self.steps, self.sampler = interval, count, steps, sampler
        self.guidance_scale, self.size, self.seed = guidance_scale, size, seed
        self.prompts, self.class_ids = prompts, class_ids

    def before_train(self, runner: Any) -> None:
        """Wrong settings are reported before hours of training."""
        model = generative_model(runner)
        check_request(model, self.count, self.steps, self.sampler, self.guidance_scale, self.size)
        if self.prompts:
            model.condition(1, prompts=list(self.prompts)[:1])
        if self.class_ids:
            model.condition(len(self.class_ids), torch.tensor(list(self.class_ids)))

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.draw(runner, runner.iter + 1)

    def after_train(self, runner: Any) -> None:
        if left_over(runner, self.interval):
            self.draw(runner, runner.iter)

    @master_only
    def draw(self, runner: Any, step: int) -> None:
        """One grid, named ``samples``, into the backends."""
        model = generative_model(runner)
        was_training = model.training
        model.eval()
        try:
            images, titles = draw_rows(
                model, self.count, self.prompts, self.class_ids, self.seed, steps=self.steps,
                sampler=self.sampler, guidance_scale=self.guidance_scale, size=self.size,
            )  # fmt: skip
        finally:
            model.train(was_training)
        grid = sample_grid(images, self.count if titles else None, titles)
        runner.visualizer.add_image('samples', grid, step=step)


def draw_rows(
    model: Any,
    count: int,
    prompts: Sequence[str] | None = None,
    class_ids: Sequence[int] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[torch.Tensor, list[str] | None]:
    """``count`` images for each prompt or class, the same noise in each row: (B, 3, H, W), and the rows' titles (None: not told)."""
    told: Sequence[Any] = list(prompts or []) or list(class_ids or [])
    if not told:
        return sample(model, count, generator=torch.Generator().manual_seed(seed), **options), None
    rows = []
    for one in told:
        if prompts:
            condition = model.condition(count, prompts=[one] * count)
        else:
            condition = model.condition(count, class_ids=torch.full((count,), one))
        generator = torch.Generator().manual_seed(seed)
        rows.append(sample(model, count, condition=condition, generator=generator, **options))
    return torch.cat(rows), [str(one) if prompts else f'class {one}' for one in told]
