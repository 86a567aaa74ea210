"""Measures what a config costs; in a process of its own, so that its peak memory is its own.

Usage: python -m mmdiffrep.utils.comparison.measure CONFIG --out COST.json [--batch-size 1] [--size H W] [--train]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, init_default_scope

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite

from .. import cli
from ..files import write
from . import images
from .flops import count_flops, count_parameters, weight_bytes
from .memory import kind_of_memory, peak_memory

WARM_UP, TIMED, LEAST_SECONDS, MOST = 2, 5, 1.0, 50  # calls that are (not) timed


def measure(
    cfg: Any, batch_size: int = 1, size: tuple[int, int] | None = None, training: bool = False
) -> dict[str, Any]:
    """What the model of a config costs.

    Args:
        batch_size: images at once, where speed and memory of inference are measured.
        size: (height, width) of the images; default: the config's.
        training: also of one training step, on the config's own data and batch size.

    Returns:
        Counts of parameters (see :func:`count_parameters`); ``flops`` of one image's inference, ``images_per_second``,
        ``memory`` (bytes); with ``training``: ``train_flops`` of an iteration, ``train_memory``, ``train_batch``,
        ``train_images``, ``epoch_iterations``; ``eval_images``; ``device``, ``threads``; ``problems``: what could not be
        measured, and why. What was not measured is None.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    init_default_scope(scope)
    device = get_device()
    model = MODELS.build(cfg.model).to(device)
    model.train()  # stages are frozen here in stock backbones
    record: dict[str, Any] = dict(
        count_parameters(model), device=_device_name(device), threads=torch.get_num_threads(),
        memory_kind=kind_of_memory(), batch_size=batch_size, problems=[],
    )  # fmt: skip
    steps = [lambda: measure_inference(cfg, model, scope, batch_size, size)]
    if training:
        steps.append(lambda: measure_training(cfg, model))
    steps.append(lambda: dict(eval_images=_evaluated(cfg, training)))
    for step in steps:
        try:
            record.update(step())
        except Exception as error:  # whatever a model or a data set raises: the rest is still measured
            record['problems'].append(f'{type(error).__name__}: {error}')
    return record


def measure_inference(
    cfg: Any, model: Any, scope: str, batch_size: int, size: tuple[int, int] | None
) -> dict[str, Any]:
    """FLOPs of one image, images a second and peak memory of whole predictions, data preprocessor included."""
    model.eval()
    size = size or images.image_size(cfg)
    if scope in ('mmseg', 'mmdet') and size is not None:
        one, many = (images.drawn_batch(scope, size, count) for count in (1, batch_size))
        count, what = batch_size, 'drawn'
    else:
        loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
        if loader is None:
            raise ValueError('the config says no image size and has no evaluation data to take an image of')
        (_, one), (built, many) = (images.first_batch(loader, n) for n in (1, batch_size))
        count, what = min(batch_size, len(built.dataset)), 'of the evaluation data'
    with torch.no_grad():
        model.test_step(one)  # what is traced or filled once is not counted
        flops = count_flops(lambda: model.test_step(one))
        seconds = _time(lambda: model.test_step(many))
        memory = peak_memory(lambda: model.test_step(many), weight_bytes(model))
    shape = images.shape_of(one)
    return dict(
        flops=flops, images_per_second=count / seconds, memory=memory, batch_size=count,
        image_size=list(shape) if shape else None, images=what,
    )  # fmt: skip


def measure_training(cfg: Any, model: Any) -> dict[str, Any]:
    """FLOPs and peak memory of one training step, forward, backward and optimizer, and what the data loader holds."""
    loader, batch = images.first_batch(cfg.train_dataloader)
    for hook in cfg.get('custom_hooks') or []:
        if cli.type_name(hook) == 'PixelFeaturesHook':  # without it an ensemble has nothing to learn from
            HOOKS.build(hook).compute(model, loader.dataset, MMLogger.get_current_instance())
    model.train()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    flops = count_flops(lambda: model.train_step(batch, optimizer))  # and the optimizer has its state
    held = weight_bytes(model) + _state_bytes(optimizer)
    memory = peak_memory(lambda: model.train_step(batch, optimizer), held)
    return dict(
        train_flops=flops, train_memory=memory, train_batch=loader.batch_sampler.batch_size,
        train_images=_unrepeated(loader.dataset), epoch_iterations=len(loader),
    )  # fmt: skip


def _state_bytes(wrapper: Any) -> int:
    """What an optimizer, or each of several, keeps of its parameters."""
    several = list(wrapper.values()) if hasattr(wrapper, 'values') else [wrapper]
    states = [state for each in several for state in each.optimizer.state.values()]
    tensors = [v for state in states for v in state.values() if isinstance(v, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def _time(call: Any) -> float:
    """Median of several timed calls, in seconds, after a warm-up."""
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    while len(times) < TIMED or (sum(times) < LEAST_SECONDS and len(times) < MOST):
        _wait()
        begin = time.perf_counter()
        call()
        _wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith('cuda') else device.upper()


def _unrepeated(dataset: Any) -> int:
    """Images of a data set inside of wrappers that repeat it."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return len(dataset)


def _evaluated(cfg: Any, training: bool) -> int | None:
    """How many images are evaluated on: of the validation where one trains, else of the test."""
    loaders = [cfg.get('val_dataloader'), cfg.get('test_dataloader')]
    loader = next((x for x in (loaders if training else loaders[::-1]) if x is not None), None)
    return None if loader is None else len(images.first_batch(loader)[0].dataset)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'))
    parser.add_argument('--train', action='store_true', help='measure a training step, too')
    cli.add_arguments(parser)
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    size = tuple(args.size) if args.size else None
    record = measure(cli.read_config(args), args.batch_size, size, args.train)
    write(args.out, json.dumps(record))


if __name__ == '__main__':
    main()
