"""A network whose looks are compiled: hooks that stay at its taps, and one graph without a break for each size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .session import TapSession
from .taps import PROBS, Tap

MODES = ('default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs')


class CompiledTaps:
    """``torch.compile`` of a network that is cut behind its taps.

    The hooks that read the taps are traced with the network, once for each size and number of images; then a look is one call of compiled code. What
    adds to activations is not compiled, and runs as before.

    Args:
        network: the network; its weights are frozen, or trained under the same graph.
        taps: all that are read in a look.
        mode: torch.compile's; ``'reduce-overhead'`` records CUDA graphs on an accelerator.
        dynamic: torch.compile's: None lets sizes vary from the second one on.
        backend: torch.compile's.

    Raises:
        ValueError: an unknown mode, or taps of probabilities, which are computed beside the network.
    """

    def __init__(
        self, network: nn.Module, taps: Sequence[Tap], mode: str = 'default', dynamic: bool | None = None, backend: str = 'inductor'
    ) -> None:
        if mode not in MODES:
            raise ValueError(f'compile: mode={mode!r} is unknown; allowed: {MODES}')
        wrong = [str(tap) for tap in taps if tap.side in PROBS]
        if wrong:
            raise ValueError(f'compile: taps {wrong} are computed beside the network and cannot be compiled with it: leave compile out')
        self.network, self.taps = network, frozenset(taps)
        self.session = TapSession(network, taps, stop=False)
        before = set(_hooks(network))
        self._open = contextlib.ExitStack()
        self._open.enter_context(self.session())
        self._own = set(_hooks(network)) - before
        how: dict[str, Any] = dict(fullgraph=True, dynamic=dynamic, backend=backend)
        if backend == 'inductor' and mode != 'default':
            how['mode'] = mode
        network.compile(**how)

    def __call__(self, run: Callable[[], Any]) -> dict[Tap, Tensor]:
        """``run()`` calls the network once; what its taps were."""
        self._forget()
        try:
            run()
            return dict(self.session.captured)
        finally:
            self._forget()

    def _forget(self) -> None:
        """The hooks' state as it was when they were traced: what is left behind in it would have the network compiled again."""
        self.session.captured.clear()
        self.session.grids.clear()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """The network as it was: not compiled. Its staying hooks read on, and what they read is dropped."""
        kept, self.network._compiled_call_impl = self.network._compiled_call_impl, None
        try:
            yield
        finally:
            self.network._compiled_call_impl = kept
            self._forget()

    def leave(self, copied: nn.Module) -> None:
        """A copy of the network, which is not compiled, without the hooks that stay: they would go on reading for this one."""
        for module in copied.modules():
            for hooks in (module._forward_hooks, module._forward_pre_hooks, module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs):
                for number in self._own & set(hooks):
                    del hooks[number]


def _hooks(network: nn.Module) -> Iterator[int]:
    """Numbers of all hooks in a network, which torch gives once in a process."""
    for module in network.modules():
        yield from module._forward_hooks
        yield from module._forward_pre_hooks
