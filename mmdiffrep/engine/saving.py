"""What hooks share that write a trained model: which weights, how a folder is replaced, what a card says."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import master_only
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper

DTYPES = dict(fp32=torch.float32, fp16=torch.float16)


def ema_hook(runner: Any) -> EMAHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, EMAHook)), None)


def averaged_model(runner: Any) -> Any:
    """The EMA copy of the model where there is one, else the model; without DDP's wrapper."""
    hook = ema_hook(runner)
    if hook is not None:
        return hook.ema_model.module
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def generative_model(runner: Any) -> Any:
    """The ``GenerativeModel`` that is being trained, averaged where there is an EMA.

    Raises:
        ValueError: something else is trained.
    """
    model = getattr(averaged_model(runner), 'model', None)
    if not hasattr(model, 'sample_shape'):
        raise ValueError(
            f'{type(averaged_model(runner)).__name__} draws no images and is read by no tap: this hook works with '
            'mmdiffrep.DenoisingPretrainer. Leave it out'
        )
    return model


def left_over(runner: Any, interval: int) -> bool:
    """Whether the end of training is no multiple of ``interval`` (below 1: only the end counts)."""
    return interval < 1 or bool(runner.iter % interval)


def replace_folder(target: Path, write: Callable[[Path], None]) -> None:
    """``write(new folder)``, which appears as ``target`` complete or not at all; an older one goes when the new one is written."""
    # names that a killed run leaves behind are used again by the next one
    new, old = (target.with_name(f'.{target.name}.{what}') for what in ('new', 'old'))
    shutil.rmtree(new, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(new)
    _open_to_readers(new)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _open_to_readers(folder: Path) -> None:
    """Files as the user's umask has them: safetensors leaves its files to their owner alone, and a team shares a folder."""
    mask = os.umask(0)
    os.umask(mask)
    for file in folder.rglob('*'):
        if file.is_file():
            file.chmod(0o666 & ~mask)


def model_card(
    runner: Any, steps: int, description: str, lines: Sequence[str], library: str, tags: Sequence[str], dtype: str
) -> str:
    """A README.md: what the model is, and the command, data, seed and steps that made it."""
    losses = runner.message_hub.get_scalar('train/loss')
    batch = runner.train_dataloader.batch_sampler.batch_size * runner.world_size
    batch *= getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    updates = steps // getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    averaged = ' (EMA)' if ema_hook(runner) else ''
    text = [
        '---', f'library_name: {library}', f'tags: [{", ".join(["mmdiffrep", *tags])}]', '---',
        f'# {Path(runner.work_dir).name}', '', description, '',
        *lines,
        f'- weights: {dtype}{averaged}',
        f'- steps: {updates}, {updates * batch} images in batches of {batch}',
        *_origin(runner),
        f'- seed: {runner.seed}',
        f'- training loss, mean of the last 100 steps: {losses.mean(100):.5f}',
        f'- command: `{" ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))}`',
        f'- device: {torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}, '
        f'torch {torch.__version__}',
    ]  # fmt: skip
    return '\n'.join(text) + '\n'


def _origin(runner: Any) -> list[str]:
    """What it was trained on, and from what it went on."""
    data = dict(runner.cfg.get('train_dataloader', {}).get('dataset', {}))
    sources = data.get('sources', data.get('ann_file', data.get('data_root')))
    sources = sources if isinstance(sources, (list, tuple)) else [sources]
    lines = [f'- data: {_plain(source)}' for source in sources if source is not None]
    count = len(runner.train_dataloader.dataset)
    settings = {key: data[key] for key in ('size', 'short_side', 'max_images') if data.get(key) is not None}
    lines.append(f'- images: {count}{"".join(f", {key} {value}" for key, value in settings.items())}')
    model = dict(runner.cfg.get('model', {}))
    for part in ('network', 'autoencoder', 'text_encoder'):
        given = model.get(part)
        origin = given.get('pretrained') if isinstance(given, dict) else given
        if origin:
            lines.append(f'- {part} from: {origin}')
    return lines


def _plain(source: Any) -> str:
    return ', '.join(f'{k}={v}' for k, v in source.items()) if isinstance(source, dict) else str(source)


class SaveHook(Hook):
    """At the end of training, and every ``interval`` iterations, writes the (EMA) model as ``<work_dir>/<out_dir>`` with a card.

    Args:
        dtype: ``'fp32'`` or ``'fp16'`` weights.
        description: what the model is, its data and the data's terms: the first lines of the card.
    """

    priority = 'LOW'
    library = ''  # that loads the folder
    tags: tuple[str, ...] = ()

    def __init__(self, interval: int = -1, out_dir: str = 'saved', dtype: str = 'fp32', description: str = '') -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} is unknown; allowed: 'fp32', 'fp16'")
        self.interval, self.out_dir, self.description = interval, out_dir, description
        self.dtype = dtype

    def write(self, model: Any, folder: Path) -> None:
        """Write the model's files into a new folder."""
        raise TypeError(f'{type(self).__name__} must define write')

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
        text = model_card(runner, steps, self.description, model.card(), self.library, self.tags, self.dtype)

        def write(folder: Path) -> None:
            self.write(model, folder)
            (folder / 'README.md').write_text(text, encoding='utf-8')

        replace_folder(target, write)
        runner.logger.info(f'Saved the model for {self.library}: {target}')
