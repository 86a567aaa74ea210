"""One forward pass with hooks: taps are read, injections are added, and all hooks go when it ends.

The network itself is never edited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .attention import hook_probs
from .taps import PROBS, SIDES, Tap
from .tokens import Grid, channels_first, enclosing, input_grid, to_map, to_tokens


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
        self.pending: list[Callable[[], None]] = []  # until the checkpointed unit has finished
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
            # of one module the probabilities come before its output
            for tap in sorted(
                self.taps, key=lambda tap: (tap.side not in PROBS, SIDES.index(tap.side))
            ):
                for handle in self._handles(tap):
                    stack.callback(handle.remove)
            with contextlib.suppress(StopForward):
                yield self

    def _around(self) -> dict[str, nn.Module]:
        """The modules whose input may tell the height and width of the tapped tokens."""
        places = [*self.taps, *self.inject]
        return {path: m for tap in places for path, m in enclosing(self.root, tap.path)}

    def _note_grid(self, path: str, module: nn.Module) -> Any:
        def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
            grid = input_grid(module, args[0] if args else kwargs.get('hidden_states'))
            if grid is not None:
                self.grids[path] = grid

        return module.register_forward_pre_hook(note, with_kwargs=True)

    def _handles(self, tap: Tap) -> list[Any]:
        module, read = self.root.get_submodule(tap.path), self._reader(tap)
        if tap.side in PROBS:
            return hook_probs(
                module, tap.side == 'probs', lambda probs: self._outside(lambda: read(probs()))
            )
        return [_hook(module, tap.side, read)]

    def _outside(self, act: Callable[[], None]) -> None:
        """``act`` now, or behind the checkpointed unit: arithmetic in it would be missed when it is recomputed."""
        if self.checkpoint_depth:
            self.pending.append(act)
        else:
            act()

    def _grid(self, tap: Tap, tokens: int) -> Grid | None:
        """Height and width of an activation with as many tokens; None where they are not the image's."""
        for path, _ in enclosing(self.root, tap.path):
            grid = self.grids.get(path)
            if grid is not None:
                return grid if grid[0] * grid[1] == tokens else None
        return None

    def _as_map(self, tap: Tap, value: Tensor) -> Tensor:
        """Tokens of the image as a map; everything else as it is."""
        if value.dim() != 3:
            return value
        tokens = value.transpose(1, 2) if self._channels_first(tap) else value
        grid = self._grid(tap, tokens.shape[1])
        return value if grid is None else to_map(tokens, grid)

    def _as_tokens(self, tap: Tap, value: Tensor, activation: Tensor) -> Tensor:
        """A map, or what broadcasts to one, in the layout of the activation that it is added to."""
        if value.dim() != 4 or activation.dim() != 3:
            return value
        first = self._channels_first(tap)
        grid = self._grid(tap, activation.shape[2 if first else 1])
        if grid is None or not _fits(value.shape[2:], grid):
            return value
        tokens = to_tokens(value.expand(*value.shape[:2], *grid))
        return tokens.transpose(1, 2) if first else tokens

    def _channels_first(self, tap: Tap) -> bool:
        return channels_first(self.root.get_submodule(tap.path))

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
            value = self._as_tokens(tap, given, activation)
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
        while self.pending and not self.checkpoint_depth:
            self.pending.pop(0)()
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
