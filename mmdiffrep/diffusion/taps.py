"""Taps: places in a network where an activation is read, or to which one is added.

A tap is written ``'<module path>'`` or ``'<module path>:<side>'`` with side ``out`` (default) or ``in``. The path is
diffusers' own, so any module can be tapped. The network itself is never edited: hooks live for one call.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIDES = ('out', 'in')


@dataclass(frozen=True, order=True)
class Tap:
    """A module path and the side of the module on which the activation is read."""

    path: str
    side: str = 'out'

    def __str__(self) -> str:
        return self.path if self.side == 'out' else f'{self.path}:{self.side}'

    @classmethod
    def parse(cls, text: str | Tap) -> Tap:
        """Read ``'up_blocks.1'``, ``'up_blocks.1.resnets.2:in'`` …

        Raises:
            ValueError: the text is empty or names an unknown side.
        """
        if isinstance(text, Tap):
            return text
        path, _, side = str(text).partition(':')
        side = side or 'out'
        if not path or side not in SIDES:
            raise ValueError(
                f"tap {text!r} cannot be read: write '<module path>' or '<module path>:<side>' with side "
                f"one of {SIDES}, for example 'up_blocks.1' or 'up_blocks.1.resnets.2:in'"
            )
        return cls(path, side)


@dataclass(frozen=True)
class TapInfo:
    """What a tap gives, found by running the network once on fake tensors."""

    tap: str
    channels: int
    stride: float  # image pixels per feature pixel; an int wherever it divides
    order: int  # position in the order of execution


def find_module(root: nn.Module, path: str) -> nn.Module:
    """The module at ``path``; an unknown path lists the nearest valid ones."""
    try:
        return root.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in root.named_modules() if name]
        near = difflib.get_close_matches(path, names, n=5, cutoff=0.4)
        raise ValueError(
            f'tap {path!r}: the network has no such module. Nearest: {near or names[:5]}. '
            'tools/list_taps.py prints all of them'
        ) from None


class StopForward(Exception):
    """Ends a forward pass once every wanted activation has been read."""


class TapSession:
    """Reads taps (and adds to them) during one forward pass.

    Args:
        modules: what to read, each tap with its module.
        inject: what to add: tap -> (module, tensor broadcastable to the activation).
        stop: raise :class:`StopForward` as soon as everything has been read.

    Reading a module that runs more than once takes its first activation. An activation that is injected into and read
    at the same tap is read after the addition.
    """

    def __init__(
        self,
        modules: Mapping[Tap, nn.Module],
        inject: Mapping[Tap, tuple[nn.Module, Tensor]] | None = None,
        stop: bool = True,
    ) -> None:
        self.modules = dict(modules)
        self.inject = dict(inject or {})
        self.stop = stop
        self.captured: dict[Tap, Tensor] = {}  # in the order of execution
        self.injected: set[Tap] = set()
        self.checkpoint_depth = 0

    @property
    def complete(self) -> bool:
        return len(self.captured) == len(self.modules)

    @contextlib.contextmanager
    def injecting(self) -> Iterator[None]:
        """Add the injected tensors while this context is open (again while a checkpointed unit is recomputed)."""
        with contextlib.ExitStack() as stack:
            for tap, (module, value) in self.inject.items():
                stack.callback(_hook(module, tap.side, self._adder(tap, value)).remove)
            yield

    @contextlib.contextmanager
    def __call__(self) -> Iterator[TapSession]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.injecting())
            for tap, module in self.modules.items():
                stack.callback(_hook(module, tap.side, self._reader(tap)).remove)
            with contextlib.suppress(StopForward):
                yield self

    def _reader(self, tap: Tap) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            self.captured.setdefault(tap, value)
            # A checkpointed unit must finish, else its recomputation does not match; `checkpointed` stops after it.
            if self.stop and self.complete and self.checkpoint_depth == 0:
                raise StopForward

        return read

    def _adder(self, tap: Tap, value: Tensor) -> Callable[[Tensor], Tensor]:
        def add(activation: Tensor) -> Tensor:
            self.injected.add(tap)
            if not _fits(value.shape, activation.shape):
                raise ValueError(
                    f'inject: a tensor of shape {tuple(value.shape)} cannot be added to the activation at {str(tap)!r}, '
                    f'of shape {tuple(activation.shape)}: it must be broadcastable to it'
                )
            return activation + value.to(activation)

        return add

    def checkpointed(self, module: nn.Module, *args: Any) -> Any:
        """Run ``module`` under activation checkpointing, injections included, then stop if all has been read."""

        def contexts() -> tuple[Any, Any]:
            return contextlib.nullcontext(), _Reopened(self.injecting)

        self.checkpoint_depth += 1
        try:
            output = torch.utils.checkpoint.checkpoint(
                module.__call__, *args, use_reentrant=False, context_fn=contexts
            )
        finally:
            self.checkpoint_depth -= 1
        if self.stop and self.complete and self.checkpoint_depth == 0:
            raise StopForward
        return output


class _Reopened:
    """A context made anew at each entry: a checkpointed unit is recomputed in every backward pass."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.open: list[Any] = []

    def __enter__(self) -> None:
        context = self.make()
        context.__enter__()
        self.open.append(context)

    def __exit__(self, *error: Any) -> Any:
        return self.open.pop().__exit__(*error)


def _fits(small: Sequence[int], large: Sequence[int]) -> bool:
    """Whether ``small`` broadcasts to ``large`` without enlarging it."""
    return len(small) <= len(large) and all(
        a in (1, b) for a, b in zip(reversed(small), reversed(large))
    )


def _hook(module: nn.Module, side: str, act: Callable[[Tensor], Tensor | None]) -> Any:
    """Call ``act`` on the activation at one side of a module; a tensor that it returns replaces the activation."""
    if side == 'out':

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            first = output if isinstance(output, Tensor) else output[0]
            new = act(first)
            if new is None:
                return None
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return module.register_forward_hook(after)

    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        # diffusers hands the main activation to blocks as the first argument, some as the keyword `hidden_states`
        if args:
            new = act(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        if 'hidden_states' not in kwargs:
            raise ValueError(
                f"a {type(_module).__name__} is called with {sorted(kwargs)} and has no activation at ':in'"
            )
        new = act(kwargs['hidden_states'])
        return None if new is None else (args, {**kwargs, 'hidden_states': new})

    return module.register_forward_pre_hook(before, with_kwargs=True)


@dataclass(frozen=True)
class TraceEvent:
    """One side of one module as it was passed in a forward; ``shape`` is None where no tensor was seen."""

    tap: Tap
    shape: tuple[int, ...] | None


def trace(root: nn.Module, run: Callable[[], Any]) -> list[TraceEvent]:
    """Every module side that ``run`` passes, in the order of execution."""
    events: list[TraceEvent] = []

    def note(path: str, side: str, value: Any) -> None:
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        events.append(
            TraceEvent(Tap(path, side), tuple(value.shape) if isinstance(value, Tensor) else None)
        )

    with contextlib.ExitStack() as stack:
        for path, module in root.named_modules():
            if not path:
                continue

            def before(_m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
                note(path, 'in', args[0] if args else kwargs.get('hidden_states'))

            def after(_m: nn.Module, _args: Any, output: Any, path: str = path) -> None:
                note(path, 'out', output)

            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        run()
    return events
