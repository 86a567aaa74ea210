"""SaveDiffusersHook: writes a pre-trained network as a diffusers folder."""

from __future__ import annotations

import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper

from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class SaveDiffusersHook(Hook):
    """At the end of training, and every ``interval`` iterations, writes ``<work_dir>/<out_dir>``.

    It holds the EMA weights where an EMAHook runs: ``unet/``, ``scheduler/``, ``model_index.json`` (``DDPMPipeline``), and a card.
    ``DiffusionBackbone`` takes the folder as its denoiser's ``pretrained``.

    Args:
        dtype: ``'fp32'`` or ``'fp16'`` weights.
        description: what the model is, its data and the data's terms: the first lines of the card.
    """

    priority = 'LOW'

    def __init__(
        self, interval: int = -1, out_dir: str = 'diffusers', dtype: str = 'fp32', description: str = ''
    ) -> None:
        if dtype not in ('fp32', 'fp16'):
            raise ValueError(f"dtype={dtype!r} is unknown; allowed: 'fp32', 'fp16'")
        self.interval, self.out_dir, self.description = interval, out_dir, description
        self.dtype = torch.float16 if dtype == 'fp16' else torch.float32

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.save(runner, runner.iter + 1)  # the loop counts after its hooks

    def after_train(self, runner: Any) -> None:
        self.save(runner, runner.iter)

    @master_only
    def save(self, runner: Any, steps: int) -> None:
        """The folder appears complete or not at all; an older one goes when the new one is written."""
        from diffusers import DDPMPipeline, DDPMScheduler

        model = _averaged(runner)
        unet = copy.deepcopy(model.unet).to('cpu', self.dtype).eval()  # a new one would draw random weights
        scheduler = DDPMScheduler.from_config(model.schedule.to_config())
        target = Path(runner.work_dir) / self.out_dir
        # names that a killed run leaves behind are used again by the next one
        new, old = (target.with_name(f'.{target.name}.{what}') for what in ('new', 'old'))
        shutil.rmtree(new, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        DDPMPipeline(unet, scheduler).save_pretrained(new)
        (new / 'README.md').write_text(self._card(runner, unet, steps), encoding='utf-8')
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        runner.logger.info(f'Saved the network as a diffusers folder: {target}')

    def _card(self, runner: Any, unet: torch.nn.Module, steps: int) -> str:
        losses = runner.message_hub.get_scalar('train/loss')
        batch = runner.train_dataloader.batch_sampler.batch_size * runner.world_size
        averaged = ' (EMA)' if _ema_hook(runner) else ''
        parameters = sum(p.numel() for p in unet.parameters()) / 1e6
        lines = [
            '---', 'library_name: diffusers', 'tags: [mmdiffrep, unconditional-image-generation]', '---',
            f'# {Path(runner.work_dir).name}', '', self.description, '',
            f'- network: UNet2DModel, {parameters:.2f}M parameters, {str(self.dtype)[6:]} weights{averaged}',
            f'- steps: {steps}, {steps * batch} images in batches of {batch}',
            f'- seed: {runner.seed}',
            f'- training loss, mean of the last 100 steps: {losses.mean(100):.5f}',
            f'- command: `{" ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))}`',
            f'- device: {torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}, '
            f'torch {torch.__version__}',
        ]  # fmt: skip
        return '\n'.join(lines) + '\n'


def _ema_hook(runner: Any) -> EMAHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)


def _averaged(runner: Any) -> Any:
    """The EMA copy of the model where there is one, else the model."""
    hook = _ema_hook(runner)
    if hook is not None:
        return hook.ema_model.module
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
