"""SaveClipHook: writes a pre-trained CLIP as a folder in open_clip's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.dist import master_only
from mmengine.hooks import Hook

from mmdiffrep.engine.saving import DTYPES, averaged_model, model_card, replace_folder
from mmdiffrep.registry import HOOKS


@HOOKS.register_module()
class SaveClipHook(Hook):
    """At the end of training, and every ``interval`` iterations, writes ``<work_dir>/<out_dir>``.

    It holds the EMA weights where an EMAHook runs: ``open_clip_config.json``, ``open_clip_model.safetensors``, the tokenizer's files,
    ``<name>.json`` (the architecture alone) and a card. ``mmdiffrep.openvocab.load_clip(folder)`` and open_clip's own
    ``create_model_and_transforms('local-dir:FOLDER')`` load it.

    Args:
        name: the architecture's name for ``open_clip.add_model_config``.
        dtype: ``'fp32'`` or ``'fp16'`` weights.
        description: what the model is, its data and the data's terms: the first lines of the card.
    """

    priority = 'LOW'

    def __init__(
        self,
        interval: int = -1,
        out_dir: str = 'open_clip',
        name: str = 'clip',
        dtype: str = 'fp32',
        description: str = '',
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown; allowed: 'fp32', 'fp16'")
        if name != Path(name).name or not name or name == 'open_clip_config':
            raise ValueError(
                f"name={name!r} does not fit; allowed: a file's name without folders, e.g. 'toy-clip'"
            )
        self.interval, self.out_dir, self.name = interval, out_dir, name
        self.dtype, self.description = dtype, description

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
        tags = ['clip', 'zero-shot-image-classification']
        text = model_card(
            runner, steps, self.description, model.card(), 'open_clip', tags, self.dtype
        )

        def write(folder: Path) -> None:
            model.save_open_clip(folder, self.name, DTYPES[self.dtype])
            (folder / 'README.md').write_text(text, encoding='utf-8')

        replace_folder(target, write)
        runner.logger.info(f"Saved the CLIP in open_clip's format: {target}")
