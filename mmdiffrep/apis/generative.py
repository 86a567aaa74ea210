"""Loading what draws images, and drawing many of them into a folder."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import torch
from mmengine.runner import load_checkpoint
from mmengine.utils import ProgressBar

from mmdiffrep.diffusion.generative import GenerativeModel
from mmdiffrep.diffusion.sampling import check_request, sample
from mmdiffrep.registry import MODELS
from mmdiffrep.utils import cli
from mmdiffrep.utils.files import write
from mmdiffrep.visualization.canvas import write_picture
from mmdiffrep.visualization.samples import to_pictures


def load_generative(model: str, checkpoint: str | None = None) -> GenerativeModel:
    """A model to draw from: a short name, a hub id, a diffusers folder; or a config file of pre-training with its checkpoint.

    Raises: FileNotFoundError, ValueError with the cure.
    """
    if not model.endswith('.py'):
        if checkpoint is not None:
            raise ValueError(
                f'{model} is no config file, so that the checkpoint {checkpoint} says nothing: leave it out'
            )
        return GenerativeModel.load(model)
    if checkpoint is None:
        raise ValueError(
            f'{model} is a config: give the checkpoint too, or the folder that its training wrote (WORK_DIR/diffusers)'
        )
    cfg = cli.read_config(argparse.Namespace(
        config=model, local_rank=0, launcher='none', cfg_options=None, work_dir=None, seed=None, deterministic=False))  # fmt: skip
    pretrainer = MODELS.build(cfg.model)
    if not isinstance(getattr(pretrainer, 'model', None), GenerativeModel):
        raise ValueError(
            f'{model} trains a {type(pretrainer).__name__}, which draws nothing; allowed: mmdiffrep.DenoisingPretrainer'
        )
    # an EMAHook's checkpoint holds the average as the model's own weights
    load_checkpoint(pretrainer, str(cli.existing_checkpoint(checkpoint)), 'cpu', strict=True)
    return pretrainer.model


def draw_images(
    model: GenerativeModel,
    folder: str | Path,
    count: int,
    settings: dict,
    seed: int = 0,
    batch_size: int = 8,
    steps: int = 50,
    sampler: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> list[Path]:
    """``count`` images as ``folder/00000.png``, …; what is there already is not drawn again. Batches are seeded by their number.

    Args:
        settings: names the model; a folder with images of others, or drawn otherwise, is refused.

    Raises:
        ValueError: the folder has other images, or what is asked cannot be drawn.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(
            f'{count} images in batches of {batch_size} were asked for; allowed: at least 1 each'
        )
    sampler = check_request(model, batch_size, steps, sampler, 1.0, size)
    folder, size_text = Path(folder), str(size) if size else "the network's"
    asked = dict(
        settings, seed=seed, batch_size=batch_size, steps=steps, sampler=sampler, size=size_text
    )
    claim(folder / 'about.json', asked, 'images that were drawn otherwise')
    files = [folder / f'{i:05d}.png' for i in range(count)]
    batches = [range(i, i + batch_size) for i in range(0, count, batch_size)]
    wanted = [b for b in batches if not all(files[i].is_file() for i in b if i < count)]
    bar = ProgressBar(len(wanted) * batch_size, file=sys.stderr) if wanted else None
    for batch in wanted:
        key = hashlib.blake2b(f'{seed}/{batch.start}'.encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, 'big'))
        # always a whole batch, so that more images can be asked for later
        images = sample(model, batch_size, steps, sampler, size=size, generator=generator)
        for i, picture in zip(batch, to_pictures(images)):
            if i < count:
                write_picture(files[i], picture)
        assert bar is not None
        bar.update(batch_size)
    if bar is not None:
        print(file=sys.stderr)
    return files


def claim(file: Path, asked: dict, what: str) -> None:
    """Write down what a folder is for; what was written down before must be the same.

    Raises: ValueError saying how they differ.
    """
    asked = json.loads(json.dumps(asked))
    if file.is_file():
        found = json.loads(file.read_text(encoding='utf-8'))
        other = sorted(k for k in {*found, *asked} if found.get(k) != asked.get(k))
        if other:
            raise ValueError(
                f'{file.parent} holds {what}: {", ".join(f"{k} {found.get(k)!r}, now {asked.get(k)!r}" for k in other)}. Give another '
                'folder, or remove this one'
            )
        return
    write(file, json.dumps(asked, indent=1) + '\n')
