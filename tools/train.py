#!/usr/bin/env python
"""Train what a config describes, in any default scope (mmseg, mmdet, mmengine)."""

from __future__ import annotations

import argparse

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep import compat
from mmdiffrep.utils import cli
from mmdiffrep.utils.cached import with_cache

AMP_TYPES = {'fp16': ('float16', 'dynamic'), 'bf16': ('bfloat16', 1.0)}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from CHECKPOINT, or from the last one in the work dir',
    )
    parser.add_argument(
        '--amp',
        nargs='?',
        const='fp16',
        choices=sorted(AMP_TYPES),
        help='mixed precision (fp16 unless said otherwise); needs an accelerator',
    )
    parser.add_argument(
        '--cache', metavar='FOLDER', help='keep features of the frozen backbone there: it looks at each image once, whatever trains behind it'
    )
    parser.add_argument('--cache-limit', type=float, metavar='GIB', help='that the folder may take: the least recently used features go first')
    parser.add_argument(
        '--views', type=int, metavar='K', help='with --cache: K fixed views of each training image instead of endless random crops'
    )
    parser.add_argument(
        '--fsdp', action='store_true', help='with a launcher: split trained weights, gradients and optimizer over the processes (FSDP)'
    )
    cli.add_arguments(parser)
    return parser


def prepare(args: argparse.Namespace):
    """The config to train. Raises: ValueError, FileNotFoundError with the cure."""
    cfg = cli.read_config(args)
    if 'train_dataloader' not in cfg:
        raise ValueError(f'{args.config} has no train_dataloader: there is nothing to train')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else resumable(args.resume)
    elif cfg.get('load_from'):
        cfg.load_from = cli.existing_checkpoint(cfg.load_from)
    if args.cache is None and (args.views is not None or args.cache_limit is not None):
        raise ValueError('--views and --cache-limit are for kept features: give --cache FOLDER, too')
    if args.cache is not None:
        with_cache(cfg, args.cache, args.views, limit=args.cache_limit)
    if args.amp is not None:
        use_amp(cfg, args.amp)
    if args.fsdp:
        use_fsdp(cfg)
    return cfg


def resumable(path: str) -> str:
    """The file of a training's checkpoint, which has more than weights. ValueError for others."""
    found = cli.existing_checkpoint(path)
    if found.endswith('.safetensors'):
        raise ValueError(
            f'--resume {path} holds weights alone, and no optimizer or iteration to go on from. To begin anew from these weights: '
            f'--cfg-options load_from={path}'
        )
    return found


def use_amp(cfg, precision: str) -> None:
    """Train in mixed precision: 'fp16' or 'bf16'."""
    if not compat.has_accelerator():
        raise ValueError(
            f'--amp {precision} needs an accelerator, and torch finds none here. Leave --amp out to train on the CPU'
        )
    wrapper = cfg.optim_wrapper
    kind = cli.type_name({'type': 'OptimWrapper', **wrapper})
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp works with an optim_wrapper of type OptimWrapper, but the config has {kind}'
        )
    wrapper.type = 'mmengine.AmpOptimWrapper'
    wrapper.dtype, wrapper.loss_scale = AMP_TYPES[precision]


def use_fsdp(cfg) -> None:
    """mmengine's FSDP strategy; checkpoints hold whole weights, as without it."""
    if cfg.get('launcher', 'none') == 'none':
        raise ValueError('--fsdp splits a training over processes: start it by tools/dist_train.sh CONFIG NUMBER --fsdp')
    cfg.runner_type = 'FlexibleRunner'
    wrapper = dict(type='MMFullyShardedDataParallel', use_orig_params=True)
    cfg.strategy = dict(type='FSDPStrategy', state_dict_cfg='full', model_wrapper=wrapper)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmdiffrep.ShardedClipHook')]


def main(argv: list[str] | None = None) -> None:
    cfg = cli.prepared(make_parser(), prepare, argv)
    cli.build_runner(cfg).train()


if __name__ == '__main__':
    main()
