#!/usr/bin/env python
"""Fill a folder of kept features ahead of training: a config's frozen backbone looks at each image of its data once.

    python tools/extract.py configs/fpn/diffusion_sd15_fpn_1xb8-20k_camvid-320x320.py --cache features --views 4
    python tools/train.py configs/fpn/diffusion_sd15_fpn_1xb8-20k_camvid-320x320.py --cache features --views 4

What is there already is not computed again, so that an interrupted extraction goes on where it was. Images that are mirrored at random are seen in one of
the two ways; --views K sees K fixed views of each. On several devices, all into one folder:

    python -m torch.distributed.run --nproc_per_node=4 tools/extract.py CONFIG --cache features      # each process takes its part
    python tools/extract.py CONFIG --cache features --shard 1/4                                       # or by hand: the second of four parts
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

import mmdiffrep  # noqa: F401  before the toolkits
from mmdiffrep import compat
from mmdiffrep.apis.building import chosen_device
from mmdiffrep.datasets import FixedViews
from mmdiffrep.registry import DATASETS, MODELS
from mmdiffrep.utils import cli
from mmdiffrep.utils.cached import with_cache

PARTS = ('train', 'val', 'test')


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--cache', required=True, metavar='FOLDER', help='where features are kept')
    parser.add_argument('--cache-limit', type=float, metavar='GIB', help='that the folder may take: the least recently used features go first')
    parser.add_argument('--views', type=int, metavar='K', help='K fixed views of each training image')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=['train', 'val'], help='default: train val')
    parser.add_argument('--batch-size', type=int, help="images at once; default: the config's")
    parser.add_argument('--workers', type=int, help="processes that load while the network looks; default: the config's, and one where it has none")
    parser.add_argument(
        '--shard', metavar='K/N', help="the K-th of N parts of the images, from 0; default: this process's under torch.distributed.run, else all"
    )
    parser.add_argument('--device', help='default: the accelerator where there is one')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE', help='change the config')
    return parser


class EveryView(Dataset):
    """All views of all items, view by view; other data sets as they are."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.views = data.views if isinstance(data, FixedViews) else 1

    def __len__(self) -> int:
        return len(self.data) * self.views

    def __getitem__(self, number: int) -> Any:
        if not isinstance(self.data, FixedViews):
            return self.data[number]
        view, index = divmod(number, len(self.data))
        return self.data.view(index, view)


def shard_of(text: str | None) -> tuple[int, int]:
    """'1/4' -> (1, 4); None: what the launcher says. Raises: ValueError."""
    if text is None:
        text = f'{os.environ.get("RANK", 0)}/{os.environ.get("WORLD_SIZE", 1)}'
    try:
        number, count = map(int, text.split('/'))
    except ValueError:
        number, count = -1, 0
    if not 0 <= number < count:
        raise ValueError(f'--shard {text} does not fit: give K/N with K from 0 to N-1, e.g. 0/4')
    return number, count


def batches(cfg: Any, part: str, args: argparse.Namespace, pinned: bool = False) -> DataLoader | None:
    """A part's batches, in order, of this shard; None where the config has no such part. Workers load while the network looks."""
    loader = cfg.get(f'{part}_dataloader')
    if not loader:
        return None
    data = EveryView(DATASETS.build(loader.dataset))
    number, count = shard_of(args.shard)
    chosen = Subset(data, range(number, len(data), count))
    size = args.batch_size or loader.get('batch_size', 1)
    workers = args.workers if args.workers is not None else loader.get('num_workers', 0) or 1
    return DataLoader(chosen, size, num_workers=workers, collate_fn=pseudo_collate, pin_memory=pinned)


def extract(args: argparse.Namespace) -> None:
    compat.check_environment()
    shard_of(args.shard)
    cfg = Config.fromfile(cli.existing_config(args.config))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    with_cache(cfg, args.cache, args.views, limit=args.cache_limit)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    local = os.environ.get('LOCAL_RANK')
    device = chosen_device(args.device or (f'cuda:{local}' if local is not None and torch.cuda.is_available() else None))
    preprocessor = MODELS.build(cfg.model.data_preprocessor).to(device)
    backbone = MODELS.build(cfg.model.backbone).to(device).eval()
    if not any(cfg.get(f'{part}_dataloader') for part in args.parts):
        raise ValueError(f'{args.config} has none of the parts {args.parts}')
    begin, seen = time.perf_counter(), 0
    for part in args.parts:
        loader = batches(cfg, part, args, pinned=torch.device(device).type == 'cuda')
        if loader is None:
            continue
        for images in _images(loader, preprocessor, part):
            backbone.kept(images)
            seen += len(images)
    store = backbone.store
    computed = store.computed if store is not None else 0
    size = store.bytes / 2**30 if store is not None else 0.0
    print(f'{seen} images in {time.perf_counter() - begin:.0f} s: {computed} looked at, {seen - computed} kept before; {size:.2f} GiB in {args.cache}')


def _images(loader: DataLoader, preprocessor: Any, part: str) -> Iterator[torch.Tensor]:
    for data in tqdm(loader, part, unit='batch'):
        yield preprocessor(data, part == 'train')['inputs']


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: extract(args))


if __name__ == '__main__':
    raise SystemExit(main())
