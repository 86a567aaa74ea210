"""Every workaround for an upstream release; ``import mmdiffrep`` installs them.

==========================================  ============================================================
for                                         what is done
==========================================  ============================================================
mmcv without compiled ops (mmcv-lite,       a stand-in ``mmcv._ext``, found only where no real one is;
tried with 2.1.0)                           its ops are in ``compat_ops.py``
mmengine 0.10.7 on torch >= 2.6             ``weights_only`` loading accepts what its checkpoints hold
mmengine's checkpoints                      short names, .safetensors files and folders are taken too
mmengine 0.10.7 without an accelerator      ``gloo`` and a wrapper without ``device_ids`` for DDP
torchvision that does not match torch,      messages that name the cure: warned of on import, raised
mmcv outside of the toolkits' bounds,       by ``check_environment`` before a tool starts
mmpretrain 1.2.0 with transformers >= 5
mmdet 3.3.0's ``DetLocalVisualizer``        a panoptic result without a segment is drawn as the image
setuptools >= 82 without ``pkg_resources``  a warning (only inheriting a config by ``mmseg::`` needs it)
==========================================  ============================================================
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch

MMCV_EXT = 'mmcv._ext'


def install() -> None:
    """Install the workarounds; safe to repeat."""
    offer_mmcv_ops()
    allow_mmengine_checkpoints()
    offer_weights()
    for problem in [*environment_errors(), *environment_warnings()]:
        warnings.warn(problem, stacklevel=3)


# --- mmcv without compiled ops -----------------------------------------------------------------


class StandInFinder:
    """Finds ``mmcv._ext`` when nothing before it on ``sys.meta_path`` did."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, StandInFinder, origin='mmdiffrep') if name == MMCV_EXT else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> Any:
        from .compat_ops import StandIn

        return StandIn(spec.name)

    @staticmethod
    def exec_module(module: Any) -> None:
        pass


def offer_mmcv_ops() -> None:
    """Put the stand-in last in the search, so that mmcv's own compiled ops win where they exist."""
    if StandInFinder not in sys.meta_path:
        sys.meta_path.append(StandInFinder)  # type: ignore[arg-type]


def uses_stand_in() -> bool:
    """Whether mmcv's ops are the stand-in's."""
    spec = importlib.util.find_spec(MMCV_EXT) if importlib.util.find_spec('mmcv') else None
    return spec is not None and spec.loader is StandInFinder


# --- resuming with weights_only ----------------------------------------------------------------


def _history_statistic(owner: Any, name: str) -> Any:
    """What ``getattr`` in a checkpoint means: a statistic of mmengine's ``HistoryBuffer``, and nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in HistoryBuffer._statistics_methods:
        raise ValueError(
            f'the checkpoint asks for attribute {name!r} of {owner!r}; only the statistics of '
            f'mmengine.logging.HistoryBuffer are allowed ({sorted(HistoryBuffer._statistics_methods)}). '
            'It was not written by mmengine: do not load it'
        )
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's message hub: its history buffers and numpy numbers.

    The buffers pickle their methods as ``getattr(HistoryBuffer, name)``. ``getattr`` itself would open any door, so its
    name leads to a function that gives these few methods only.
    """
    if not hasattr(torch.serialization, 'get_unsafe_globals_in_checkpoint'):  # torch < 2.6
        return
    from mmengine.logging import HistoryBuffer

    HistoryBuffer()  # fills its table of statistics, which a new process does not have yet
    core = np._core if hasattr(np, '_core') else np.core
    numpy_functions = [
        (getattr(core.multiarray, name), f'numpy.{module}.multiarray.{name}')
        for name in ('_reconstruct', 'scalar')
        for module in ('core', '_core')
    ]
    numbers = [type(np.dtype(code)) for code in '?bhilqBHILQefd']
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            np.ndarray,
            np.dtype,
            *numbers,
            *numpy_functions,
            (_history_statistic, 'builtins.getattr'),
            (_history_statistic, '__builtin__.getattr'),
        ]
    )


# --- what mmengine takes as a checkpoint -------------------------------------------------------

CHECKPOINTS = 'mmengine.runner.checkpoint'


class CheckpointFinder:
    """Adds what mmdiffrep can load once ``mmengine.runner.checkpoint`` is imported: importing it for that would take seconds."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != CHECKPOINTS:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _register_weights(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def offer_weights() -> None:
    """Let ``load_from``, ``init_cfg`` and the toolkits' inferencers take what :func:`.utils.checkpoints.register_schemes` says."""
    if CHECKPOINTS in sys.modules:
        _register_weights(sys.modules[CHECKPOINTS])
    elif CheckpointFinder not in sys.meta_path:
        sys.meta_path.insert(0, CheckpointFinder)  # type: ignore[arg-type]


def _register_weights(module: Any) -> None:
    from .utils.checkpoints import register_schemes

    register_schemes(module.CheckpointLoader)


# --- drawing a panoptic result without segments ------------------------------------------------


def let_mmdet_draw_nothing() -> None:
    """mmdet's visualiser stacks what it draws of each segment, and fails where there is none. Called where mmdet is used."""
    from mmdet.visualization import DetLocalVisualizer

    draw = DetLocalVisualizer._draw_panoptic_seg
    if hasattr(draw, '__wrapped__'):
        return

    @functools.wraps(draw)
    def draw_if_any(self: Any, image: Any, panoptic_seg: Any, classes: Any, palette: Any) -> Any:
        nothing = len(classes)
        if bool((panoptic_seg.sem_seg == nothing).all()):
            return image
        return draw(self, image, panoptic_seg, classes, palette)

    DetLocalVisualizer._draw_panoptic_seg = draw_if_any


# --- distributed training without an accelerator -----------------------------------------------


def prepare_cpu_ddp(cfg: Any) -> None:
    """Start ``gloo`` and wrap the model without ``device_ids`` when a launcher is used on a machine without a GPU.

    mmengine's ``init_dist`` calls ``torch.cuda.set_device`` and its runner gives the wrapper a device number.
    """
    if cfg.get('launcher', 'none') != 'pytorch' or has_accelerator():
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    ) | (cfg.get('model_wrapper_cfg') or {})
    strategy = cfg.get('strategy') or {}
    if strategy.get('type') == 'FSDPStrategy':  # gives the wrapper a device number, and torch's FSDP takes the CPU only when told so
        strategy.setdefault('model_wrapper', dict(type='MMFullyShardedDataParallel')).setdefault('device_id', torch.device('cpu'))


def has_accelerator() -> bool:
    """Whether mmengine would train on anything but the CPU and Apple's MPS."""
    from mmengine.device import get_device

    return get_device() not in ('cpu', 'mps')


# --- the environment ---------------------------------------------------------------------------


def check_environment() -> None:
    """Raise if training could not start here, with the cure.

    Raises: RuntimeError naming everything that does not fit together.
    """
    errors = environment_errors()
    if not errors:
        try:
            import torchvision  # noqa: F401  its import fails when its compiled part is for another torch
        except (RuntimeError, ImportError, OSError) as error:
            errors = [f'torchvision does not load: {error}. {_torchvision_cure()}']
    if errors:
        raise RuntimeError('this environment cannot work:\n' + '\n'.join(f'- {e}' for e in errors))


def environment_errors() -> list[str]:
    """What does not fit together, found from version files without importing anything."""
    checks = (_torchvision_mismatch(), *_mmcv_mismatches(), _mmpretrain_mismatch())
    return [message for message in checks if message]


def environment_warnings() -> list[str]:
    """What works, except for a feature."""
    if importlib.util.find_spec('pkg_resources') is not None:
        return []
    return [
        'pkg_resources is missing (setuptools 82 and later leave it out): configs that inherit by '
        "'mmseg::' or 'mmdet::' cannot be read. Run: pip install 'setuptools<82'"
    ]


def _torchvision_mismatch() -> str | None:
    """torchvision 0.(n + 15) is made for torch 2.n."""
    found = package_version('torchvision')
    if found is None:
        return None
    torch_2 = re.match(r'2\.(\d+)', torch.__version__)
    vision = re.match(r'0\.(\d+)', found)
    if torch_2 and vision and int(vision[1]) != int(torch_2[1]) + 15:
        return (
            f'torchvision {found} is not made for torch {torch.__version__}: it fails with '
            f'"operator torchvision::nms does not exist". {_torchvision_cure()}'
        )
    return None


def _torchvision_cure() -> str:
    minor = re.match(r'2\.(\d+)', torch.__version__)
    wanted = f'torchvision==0.{int(minor[1]) + 15}.*' if minor else 'torchvision'
    return f"Install the one for torch {torch.__version__} from the same place as torch: pip install '{wanted}'"


def _mmcv_mismatches() -> list[str]:
    """What mmseg and mmdet assert when they are imported, read from their sources (forks have other bounds)."""
    from mmengine.utils import digit_version

    found = package_version('mmcv')
    messages = []
    for toolkit in ('mmseg', 'mmdet'):
        source = _source(toolkit, '__init__.py')
        upper = re.search(r"(?i)mmcv_max(?:imum_version)? = '([^']+)'", source)
        if not source or not upper:
            continue
        cure = f"pip install 'mmcv-lite<{upper[1]}', or mmcv of that version with its compiled ops"
        if found is None:
            messages.append(f'{toolkit} needs mmcv, which is not installed. Run: {cure}')
        elif digit_version(found) >= digit_version(upper[1]):
            messages.append(
                f'{toolkit} refuses mmcv {found}; it allows mmcv < {upper[1]}. Run: {cure}'
            )
    return messages


def _mmpretrain_mismatch() -> str | None:
    found, transformers = package_version('mmpretrain'), package_version('transformers')
    if found is None or transformers is None or int(transformers.split('.')[0]) < 5:
        return None
    return (
        f'mmpretrain {found} does not import with transformers {transformers}, and mmdet imports it when it is '
        "there. Run: pip uninstall mmpretrain (or pip install 'transformers<5')"
    )


def package_version(package: str) -> str | None:
    """The version of an importable package, whatever the distribution it came from is called."""
    source = _source(package, 'version.py') or _source(package, '__init__.py')
    found = re.search(r"^(?:__|opencv_)?version(?:__)? = ['\"]([^'\"]+)['\"]", source, re.MULTILINE)
    return found[1] if found else None


def _source(package: str, file: str) -> str:
    """A file of an importable top-level package; empty if there is none. Nothing is imported."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module made by hand
        return ''
    if spec is None or spec.origin is None:
        return ''
    path = Path(os.path.dirname(spec.origin), file)
    return path.read_text(encoding='utf-8', errors='replace') if path.is_file() else ''
