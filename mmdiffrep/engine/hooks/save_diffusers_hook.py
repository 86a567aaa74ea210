"""SaveDiffusersHook: writes a pre-trained network as a diffusers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmdiffrep.engine.saving import DTYPES, averaged_model, model_card, replace_folder
from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class SaveDiffusersHook(Hook):
    """At the end of training, and every ``interval`` iterations, writes ``<work_dir>/<out_dir>``.

    It holds the EMA weights where an EMAHook runs: ``unet/`` or ``transformer/``, ``scheduler/``, ``vae/`` and ``text_encoder/`` where
    the network works with them, ``model_index.json`` where a diffusers pipeline draws from it, and a card. ``DiffusionBackbone``
    takes the folder as its denoiser's ``pretrained``. The model must have ``save_diffusers(folder, dtype)`` and ``card()``.

    Args:
        dtype: ``'fp32'`` or ``'fp16'`` weights.
        description: what the model is, its data and the data's terms: the first lines of the card.
    """

    priority = 'LOW'

    def __init__(
        self, interval: int = -1, out_dir: str = 'diffusers', dtype: str = 'fp32', description: str = ''
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown; allowed: 'fp32', 'fp16'")
        self.interval, self.out_dir, self.description = interval, out_dir, description
        self.dtype = dtype

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.save(runner, runner.iter + 1)  # the loop counts after its hooks

    def after_train(self, runner: Any) -> None:
        self.save(runner, runner.iter)

    @master_only
    def save(self, runner: Any, steps: int) -> None:
        """The folder appears complete or not at all; an older one goes when the new one is written."""
        model = averaged_model(runner)
        target = Path(runner.work_dir) / self.out_dir
        text = model_card(
            runner, steps, self.description, model.card(), 'diffusers', ['unconditional-image-generation'], self.dtype
        )

        def write(folder: Path) -> None:
            model.save_diffusers(folder, DTYPES[self.dtype])
            (folder / 'README.md').write_text(text, encoding='utf-8')

        replace_folder(target, write)
        runner.logger.info(f'Saved the network as a diffusers folder: {target}')
