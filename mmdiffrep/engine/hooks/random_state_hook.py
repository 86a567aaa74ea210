"""RandomStateHook: a resumed run goes on exactly as the uninterrupted one would have."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook

from mmdiffrep.registry import HOOKS

KEY = 'mmdiffrep_random_state'


def get_random_state() -> dict[str, Any]:
    """States of Python's, numpy's and torch's generators, as tensors and numbers only (loads with ``weights_only``)."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return dict(
        python=(version, torch.tensor(numbers, dtype=torch.int64), gauss),
        numpy=(str(name), torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )  # fmt: skip


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if state['cuda'] and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state['cuda']])


class _Replaying:
    """A data loader's iterator that restores the random states right after the batches that were seen before.

    mmengine replays them when it resumes an iteration-based loop, which draws random numbers (without worker processes, from
    the main process' generators), and fetches the next batch before any hook is called.
    """

    def __init__(self, iterator: Iterator[Any], seen: int, state: dict[str, Any]) -> None:
        self.iterator, self.left, self.state = iterator, seen, state

    def __iter__(self) -> _Replaying:
        return self

    def __next__(self) -> Any:
        if self.left == 0:
            set_random_state(self.state)
        self.left -= 1
        return next(self.iterator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.iterator, name)


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Saves the random generators' states, of every process, in each checkpoint and restores them on resume.

    Validation does not disturb training: it leaves the states as they were. What an epoch-based loop's persistent workers
    have drawn is not restored; with ``persistent_workers=False`` it need not be.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None
        self._other_ranks: list[dict[str, Any]] = []

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        # the best checkpoint is saved during validation, training's state is the one before it
        state = self._before_val or get_random_state()
        checkpoint[KEY] = {**state, 'other_ranks': self._other_ranks}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(KEY)
        if state is not None and get_rank() > 0:
            others = state['other_ranks']
            state = others[get_rank() - 1] if get_rank() <= len(others) else None
        self._loaded = state

    def before_train(self, runner: Any) -> None:
        if self._loaded is None or not runner._resume:
            return
        loop = runner.train_loop
        if hasattr(loop, 'dataloader_iterator'):
            loop.dataloader_iterator = _Replaying(
                loop.dataloader_iterator, loop.iter, self._loaded
            )
            self._loaded = None

    def before_train_epoch(self, runner: Any) -> None:
        # an epoch-based loop draws its data loader's iterator after this
        if self._loaded is not None and runner._resume:
            set_random_state(self._loaded)
            self._loaded = None

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        if get_world_size() > 1 and any(_saves(hook, runner) for hook in runner.hooks):
            self._gather()

    def after_train_epoch(self, runner: Any) -> None:
        if get_world_size() > 1:
            self._gather()

    def _gather(self) -> None:
        """A checkpoint is written by the first process alone, which must know the others' states before."""
        self._other_ranks = all_gather_object(get_random_state())[1:]

    def before_val(self, runner: Any) -> None:
        self._before_val = get_random_state()

    def after_val(self, runner: Any) -> None:
        if self._before_val is not None:
            set_random_state(self._before_val)
            self._before_val = None


def _saves(hook: Hook, runner: Any) -> bool:
    """Whether a hook writes a checkpoint after this iteration."""
    if not isinstance(hook, CheckpointHook) or hook.by_epoch:
        return False
    return hook.every_n_train_iters(runner, hook.interval, hook.save_begin) or (
        hook.save_last and hook.is_last_train_iter(runner)
    )
