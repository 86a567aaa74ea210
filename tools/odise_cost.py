#!/usr/bin/env python
"""What an open-vocabulary config costs: a training step and a prediction at full size, with random weights; nothing is fetched.

    python tools/odise_cost.py configs/odise/odise_sd15_8xb8-lsj-92k_coco-panoptic-1024x1024.py --size 512 --device cpu
    python tools/odise_cost.py configs/odise/odise_sd15_1xb4-lsj-92k_coco-panoptic-512x512.py --batch-size 4 --amp bf16 --steps 3

Networks have their configs' architectures, names are embedded at random. Images and masks are drawn. Says what is trained, and whether
every trained tensor got a gradient and no frozen one did (exit status 1 if not). Seconds on the CPU are processor time, summed over
threads. Without the CLIP that looks at the masks: --cfg-options model.clip=None.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep.models.frozen import FrozenHolder
from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.images import drawn_batch, drawn_targets, image_size
from mmdiffrep.utils.comparison.memory import forget_peak, peak_of_process
from mmdiffrep.utils.comparison.random_weights import with_random_weights
from mmdiffrep.utils.taps import format_table

AMP = {'bf16': 'bfloat16', 'fp16': 'float16'}
LEAST = 32  # pixels: the coarsest stride


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='of configs/odise')
    parser.add_argument('--size', type=int, help="side of the images in pixels; default: the config's")
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--steps', type=int, default=1, help="training steps and predictions; the last one's times are printed")
    parser.add_argument('--amp', choices=list(AMP), help='mixed precision of what is trained, as in tools/train.py')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument(
        '--cfg-options', nargs='+', action=cli.DictAction, metavar='KEY=VALUE', help='change the config, e.g. model.backbone.with_cp=True'
    )
    return parser


def read(args: argparse.Namespace) -> Config:
    """The config, its images of the wanted size. ValueError, FileNotFoundError for arguments that do not fit."""
    config = Config.fromfile(cli.existing_config(args.config))
    if 'model' not in config or cli.type_name(config.model) != 'OpenVocabSegmentor':
        raise ValueError(f'{args.config} has no mmdiffrep.OpenVocabSegmentor as its model: give a config of configs/odise')
    if args.cfg_options:
        config.merge_from_dict(args.cfg_options)
    size = image_size(config)
    args.size = args.size or (size and size[0])
    if not args.size or args.size < LEAST or min(args.batch_size, args.steps) < 1:
        raise ValueError(
            f'--size {args.size} --batch-size {args.batch_size} --steps {args.steps} do not fit; allowed: a size of at least {LEAST} '
            'pixels, and at least one image and step'
        )
    for augment in config.model.data_preprocessor.get('batch_augments') or []:
        if 'size' in augment:  # pads
            augment['size'] = (args.size, args.size)
    return config


class Meter:
    """Seconds and peak memory of calls on a device; on the CPU processor time of all threads, so that other work hardly counts."""

    def __init__(self, device: str) -> None:
        self.on_cpu = torch.device(device).type == 'cpu'
        self.clock = time.process_time if self.on_cpu else time.perf_counter

    def seconds(self, call: Callable[[], Any]) -> tuple[Any, float]:
        begin = self.clock()
        found = call()
        if not self.on_cpu:
            torch.cuda.synchronize()
        return found, self.clock() - begin

    def peak(self) -> int:
        """Bytes since the last call."""
        if self.on_cpu:
            found = peak_of_process()
            forget_peak()
        else:
            found = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        return found


def frozen_parts(model: Any) -> dict[str, nn.Module]:
    """What the model uses and does not train: outside the module tree."""
    found = {name: module.frozen for name, module in model.named_modules() if isinstance(module, FrozenHolder)}
    if model.clip is not None:
        found['clip'] = model.clip.classifier.module
    return found


def without_gradient(model: nn.Module) -> list[str]:
    """Trained tensors that got none, or one that is not finite."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, p in named if p.grad is None or not bool(p.grad.isfinite().all())]


def frozen_with_gradient(model: nn.Module) -> list[str]:
    named = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    for part, module in frozen_parts(model).items():
        visible = {id(p) for p in model.parameters()}
        named += [(f'{part}.{name}', p) for name, p in module.named_parameters() if id(p) not in visible]
    return [name for name, p in named if p.requires_grad or p.grad is not None]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Build, train a step, predict. What was found; see :func:`report`."""
    config = read(args)
    init_default_scope('mmdet')
    MMLogger.get_current_instance().setLevel('WARNING')  # a line for each parameter otherwise
    meter = Meter(args.device)
    torch.manual_seed(0)
    model: Any = MODELS.build(with_random_weights(config.model))
    model.init_weights()
    model.to(args.device)
    found: dict[str, Any] = dict(memory=dict(building=meter.peak()))
    vocabulary = model.naming.trained
    settings = {key: value for key, value in config.optim_wrapper.items() if key not in ('type', 'accumulative_counts')}
    amp = dict(type='AmpOptimWrapper', dtype=AMP[args.amp]) if args.amp else dict(type='OptimWrapper')
    optimizer: Any = build_optim_wrapper(model, {**settings, **amp})

    def batch(targets: bool) -> Any:
        data = drawn_batch('mmdet', (args.size, args.size), args.batch_size)
        if targets:
            drawn_targets(data['data_samples'], args.size, sum(vocabulary.is_thing), len(vocabulary))
        return data

    model.train()
    for _ in range(args.steps):
        data = model.data_preprocessor(batch(True), True)
        with optimizer.optim_context(model):
            losses, forward = meter.seconds(lambda data=data: model(**data, mode='loss'))
        loss = model.parse_losses(losses)[0]
        _, backward = meter.seconds(lambda loss=loss: optimizer.backward(optimizer.scale_loss(loss)))
        found.update(loss=float(loss.detach()), missing=without_gradient(model), frozen_touched=frozen_with_gradient(model))
        _, step = meter.seconds(lambda: (optimizer.step(), optimizer.zero_grad()))
        del losses, loss, data
    found['memory']['training step'] = meter.peak()
    model.eval()
    autocast = torch.autocast(torch.device(args.device).type, getattr(torch, AMP[args.amp or 'bf16']), enabled=args.amp is not None)
    for _ in range(args.steps):
        with torch.no_grad(), autocast:
            results, prediction = meter.seconds(lambda: model.test_step(batch(False)))
    found['memory']['prediction'] = meter.peak()
    found['seconds'] = dict(forward=forward, backward=backward, optimizer=step, prediction=prediction)
    found['classes'], found['segments'] = len(vocabulary), len(results[0].pred_panoptic['segments'])
    found['trained'] = trained_parts(model)
    found['frozen'] = {
        name: (sum(p.numel() for p in part.parameters()), str(next(part.parameters()).dtype).removeprefix('torch.'))
        for name, part in frozen_parts(model).items()
    }
    return found


def trained_parts(model: nn.Module) -> dict[str, int]:
    """Numbers of trained parameters by the first two names of their path."""
    parts: dict[str, int] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = '.'.join(name.split('.')[:2])
            parts[part] = parts.get(part, 0) + p.numel()
    return parts


def report(args: argparse.Namespace, found: dict[str, Any]) -> str:
    total = sum(found['trained'].values())
    rows = [[name, 'trained', f'{count / 1e6:.2f}M', 'float32'] for name, count in found['trained'].items()]
    rows.append(['in all', 'trained', f'{total / 1e6:.2f}M', ''])
    rows += [[name, 'frozen', f'{count / 1e6:.1f}M', dtype] for name, (count, dtype) in found['frozen'].items()]
    costs = [[name, f'{value:.1f} s'] for name, value in found['seconds'].items()]
    costs += [[f'peak memory, {name}', f'{value / 2**30:.2f} GiB'] for name, value in found['memory'].items()]
    missing, touched = found['missing'], found['frozen_touched']
    device = f'{torch.get_num_threads()} CPU threads' if torch.device(args.device).type == 'cpu' else torch.cuda.get_device_name()
    images = f'{args.batch_size} image{"s" * (args.batch_size > 1)} of {args.size}×{args.size}'
    return '\n\n'.join(
        [
            format_table(['part', '', 'parameters', 'type'], rows, left=(0, 1, 3)),
            format_table([images, ''], costs),
            f'loss {found["loss"]:.1f}; predicted {found["segments"]} segments of {found["classes"]} classes\n'
            f'trained tensors without a finite gradient: {missing or "none"}\nfrozen tensors with one: {touched or "none"}\n'
            f'{device}, torch {torch.__version__}, {args.amp or "no"} AMP',
        ]
    )


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    found: dict[str, Any] = {}

    def act() -> None:
        found.update(measure(args))
        print(report(args, found))

    status = cli.reporting(act)
    return status or int(bool(found['missing'] or found['frozen_touched']))


if __name__ == '__main__':
    sys.exit(main())
