"""Taps: places in a network where an activation is read, or to which one is added.

A tap is written ``'<module path>'`` or ``'<module path>:<side>'`` with side ``out`` (default) or ``in``; at an attention also
``probs``, its probabilities averaged over heads, or ``head_probs``, those of every head. The path is diffusers' own, so any module
can be tapped. Tokens of the image are given as maps. The network itself is never edited: hooks live for one call.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import check_attention, hook_probs
from .tokens import Grid, enclosing, input_grid, map_shape, sees_text, to_map, to_tokens

SIDES = ('out', 'in', 'probs', 'head_probs')
PROBS = ('probs', 'head_probs')


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


def check_tap(root: nn.Module, tap: Tap) -> None:
    """ValueError for a tap that the network does not have, or that reads what has no place in the image."""
    module = find_module(root, tap.path)
    if tap.side in PROBS:
        check_attention(tap.path, module)
    elif sees_text(root, tap.path):
        raise ValueError(
            f'tap {str(tap)!r} reads tokens of the text, which have no place in the image. Tap the queries (to_q) or the '
            "attention's ':probs', which is a map for each token"
        )


class StopForward(Exception):
    """Ends a forward pass once every wanted activation has been read."""


class TapSession:
    """Reads taps (and adds to them) during one forward pass.

    Args:
        root: the network, in which the taps' paths are looked up.
        taps: what to read.
        inject: what to add: tap -> tensor broadcastable to the activation (a map, where that is tokens).
        stop: raise :class:`StopForward` as soon as everything has been read.

    Reading a module that runs more than once takes its first activation. An activation that is injected into and read
    at the same tap is read after the addition.
    """

    def __init__(
        self,
        root: nn.Module,
        taps: Iterable[Tap],
        inject: Mapping[Tap, Tensor] | None = None,
        stop: bool = True,
    ) -> None:
        self.root = root
        self.taps = list(dict.fromkeys(taps))
        self.inject = dict(inject or {})
        self.grids: dict[str, Grid] = {}  # module path -> grid of its input, if that was a map
        self.stop = stop
        self.captured: dict[Tap, Tensor] = {}  # in the order of execution
        self.injected: set[Tap] = set()
        self.checkpoint_depth = 0

    @property
    def complete(self) -> bool:
        return len(self.captured) == len(self.taps)

    @contextlib.contextmanager
    def injecting(self) -> Iterator[None]:
        """Add the injected tensors while this context is open (again while a checkpointed unit is recomputed)."""
        with contextlib.ExitStack() as stack:
            for tap, value in self.inject.items():
                module = self.root.get_submodule(tap.path)
                stack.callback(_hook(module, tap.side, self._adder(tap, value)).remove)
            yield

    @contextlib.contextmanager
    def __call__(self) -> Iterator[TapSession]:
        with contextlib.ExitStack() as stack:
            for path, module in self._around().items():
                stack.callback(self._note_grid(path, module).remove)
            stack.enter_context(self.injecting())
            for tap in self.taps:
                for handle in self._handles(tap):
                    stack.callback(handle.remove)
            with contextlib.suppress(StopForward):
                yield self

    def _around(self) -> dict[str, nn.Module]:
        """The modules whose input may tell the height and width of the tapped tokens."""
        return {path: m for tap in self.taps for path, m in enclosing(self.root, tap.path)}

    def _note_grid(self, path: str, module: nn.Module) -> Any:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            grid = input_grid(module, args[0] if args else kwargs.get('hidden_states'))
            if grid is not None:
                self.grids[path] = grid

        return module.register_forward_pre_hook(note, with_kwargs=True)

    def _handles(self, tap: Tap) -> list[Any]:
        module, read = self.root.get_submodule(tap.path), self._reader(tap)
        if tap.side in PROBS:
            return hook_probs(module, tap.side == 'probs', read)
        return [_hook(module, tap.side, read)]

    def _as_map(self, tap: Tap, value: Tensor) -> Tensor:
        """Tokens of the image as a map; everything else as it is."""
        if value.dim() == 3:
            for path, _ in enclosing(self.root, tap.path):
                grid = self.grids.get(path)
                if grid is not None:
                    fits = map_shape(tuple(value.shape), grid) != tuple(value.shape)
                    return to_map(value, grid) if fits else value
        return value

    def _reader(self, tap: Tap) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            if tap not in self.captured:
                self.captured[tap] = self._as_map(tap, value)
            # A checkpointed unit must finish, else its recomputation does not match; `checkpointed` stops after it.
            if self.stop and self.complete and self.checkpoint_depth == 0:
                raise StopForward

        return read

    def _adder(self, tap: Tap, given: Tensor) -> Callable[[Tensor], Tensor]:
        def add(activation: Tensor) -> Tensor:
            self.injected.add(tap)
            value = to_tokens(given) if given.dim() == 4 and activation.dim() == 3 else given
            if not _fits(value.shape, activation.shape):
                raise ValueError(
                    f'inject: a tensor of shape {tuple(given.shape)} cannot be added to the activation at {str(tap)!r}, '
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
