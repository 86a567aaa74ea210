"""What ``tools/train.py`` and ``tools/test.py`` share: arguments, reading the config, the runner."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .. import compat
from .checkpoints import existing_checkpoint as existing_checkpoint

PACKAGE = Path(__file__).resolve().parents[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every tool that builds a runner."""
    parser.add_argument(
        '--work-dir', help='where logs and checkpoints go; default work_dirs/CONFIG'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config, e.g. train_cfg.max_iters=100 key="[1,2]"',
    )
    parser.add_argument('--seed', type=int, help='replaces randomness.seed of the config')
    parser.add_argument(
        '--deterministic', action='store_true', help='refuse algorithms whose result may vary'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by launchers'
    )


def read_config(args: argparse.Namespace) -> Config:
    """The config file with the command line's changes.

    Raises: FileNotFoundError with the nearest config names.
    """
    path = existing_config(args.config)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(path)
    cfg.launcher = args.launcher
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(path).stem))
    if args.seed is not None or args.deterministic:
        randomness = dict(cfg.get('randomness', {}))
        if args.seed is not None:
            randomness['seed'] = args.seed
        cfg.randomness = {**randomness, 'deterministic': args.deterministic}
    return cfg


def existing_config(path: str) -> str:
    """The path itself, if it is there. Raises: FileNotFoundError with the nearest config names."""
    if Path(path).is_file():
        return path
    known = {str(p): p.name for p in known_configs()}
    wanted = Path(path).name
    if not wanted.endswith('.py'):
        wanted += '.py'
    close = difflib.get_close_matches(wanted, known.values(), n=3, cutoff=0.4)
    near = [where for name in close for where, other in known.items() if other == name]
    hint = f' Nearest: {", ".join(near)}' if near else ' Give the path of a .py config file'
    raise FileNotFoundError(f'config {path!r} is not a file.{hint}')


def known_configs() -> list[Path]:
    """The configs that come with the package; as paths from the current folder where they lie below it."""
    roots = (PACKAGE.parent / 'configs', PACKAGE / '.mim' / 'configs')
    root = next((r for r in roots if r.is_dir()), None)
    if root is None:
        return []
    here = Path.cwd()
    return [
        path.relative_to(here) if path.is_relative_to(here) else path
        for path in sorted(root.rglob('*.py'))
        if '_base_' not in path.relative_to(root).parts
    ]


def build_runner(cfg: Config) -> Any:
    """mmengine's runner, or the one named by ``runner_type``."""
    compat.prepare_cpu_ddp(cfg)
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def type_name(cfg: Any) -> str:
    """The name of what a config builds, without its scope: 'mmseg.IoUMetric' -> 'IoUMetric'."""
    kind = cfg['type']
    return kind.rsplit('.', 1)[-1] if isinstance(kind, str) else kind.__name__


def prepared(parser: argparse.ArgumentParser, prepare: Any, argv: list[str] | None) -> Config:
    """Parse argv and prepare the config; a mistake of the user ends the program with one line instead of a traceback."""
    args = parser.parse_args(argv)
    try:
        compat.check_environment()
        return prepare(args)
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        parser.exit(2, f'error: {error}\n')


def reporting(act: Callable[[], Any]) -> int:
    """Run ``act``; a mistake of the user becomes one line instead of a traceback. The exit status."""
    try:
        act()
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0
