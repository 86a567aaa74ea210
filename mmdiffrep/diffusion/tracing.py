"""One forward seen from outside: every module side that it passes, with shapes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .taps import Tap
from .tokens import Grid, channels_first, input_grid, map_shape, sees_text

if TYPE_CHECKING:
    from .denoiser import Denoiser


@dataclass(frozen=True)
class TraceEvent:
    """One side of one module as it was passed in a forward; ``shape`` is None where no tensor was seen.

    Tokens of the image have the shape of their map (B, C, h, w).
    """

    tap: Tap
    shape: tuple[int, ...] | None


class _Tracer:
    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.events: list[TraceEvent] = []
        self.open: list[Grid | None] = []  # of the modules that are running, outermost first
        self.last: dict[str, tuple[int, ...]] = {}  # path -> raw shape of its latest output

    def grid(self) -> Grid | None:
        return next((grid for grid in reversed(self.open) if grid is not None), None)

    def note(self, path: str, side: str, shape: tuple[int, ...] | None) -> None:
        if shape is not None and not sees_text(self.root, path):
            if len(shape) == 3 and channels_first(self.root.get_submodule(path)):
                shape = shape[0], shape[2], shape[1]
            shape = map_shape(shape, self.grid())
        self.events.append(TraceEvent(Tap(path, side), shape))

    def before(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            value = args[0] if args else kwargs.get('hidden_states')
            self.open.append(input_grid(module, value))
            if path:
                self.note(path, 'in', _shape(value))

        return hook

    def after(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            if path:
                self.last[path] = _shape(output) or ()
                self._note_probs(path, module)
                self.note(path, 'out', _shape(output))
            self.open.pop()

        return hook

    def _note_probs(self, path: str, module: nn.Module) -> None:
        query, key = (self.last.get(f'{path}.{name}', ()) for name in ('to_q', 'to_k'))
        if len(query) == 3 == len(key) and hasattr(module, 'heads'):
            self.note(path, 'probs', (query[0], query[1], key[1]))
            self.note(path, 'head_probs', (query[0], query[1], module.heads * key[1]))


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, (tuple, list)) and value:
        value = value[0]
    return tuple(value.shape) if isinstance(value, Tensor) else None


def trace(root: nn.Module, run: Callable[[], Any]) -> list[TraceEvent]:
    """Every module side that ``run`` passes, in the order of execution."""
    tracer = _Tracer(root)
    with contextlib.ExitStack() as stack:
        for path, module in root.named_modules():
            stack.callback(
                module.register_forward_pre_hook(tracer.before(path), with_kwargs=True).remove
            )
            stack.callback(module.register_forward_hook(tracer.after(path)).remove)
        run()
    return tracer.events


def leaves(tensors: Iterable[Tensor]) -> set[int]:
    """The ids of the parameters that tensors depend on, read from their autograd graph."""
    todo = [x.grad_fn for x in tensors]
    seen: set[Any] = set()
    found = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, 'variable'):
            found.add(id(node.variable))
        todo += [parent for parent, _ in node.next_functions]
    return found


class _Pass(nn.Module):
    """Makes a module of a denoiser's whole pass, for :func:`torch.func.functional_call`."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, image: Tensor, t: Tensor) -> None:
        self.denoiser.run_all(image, t)


def run_on_meta(denoiser: Denoiser, image_size: tuple[int, int]) -> None:
    """One forward on the meta device: shapes alone, several times faster than fake tensors."""
    like = next(denoiser.network.parameters())
    tensors = itertools.chain(denoiser.named_parameters(), denoiser.named_buffers())
    state = {f'denoiser.{name}': value.detach().to('meta') for name, value in tensors}
    with _quiet_autocast(like.device.type):
        arguments = _example(denoiser, image_size, torch.device('meta'), like.dtype)
        torch.func.functional_call(_Pass(denoiser), state, arguments)


def run_on_fakes(denoiser: Denoiser, image_size: tuple[int, int]) -> None:
    """One forward on fake tensors: shapes and the autograd graph down to the network's own parameters."""
    like = next(denoiser.network.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True), _quiet_autocast(like.device.type):
        denoiser.run_all(*_example(denoiser, image_size, like.device, like.dtype))


def _example(
    denoiser: Denoiser, image_size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    image = torch.empty(1, denoiser.image_channels, *image_size, device=device, dtype=dtype)
    return image, denoiser.schedule.example_timesteps(1).to(device)


def is_abstract(x: Tensor) -> bool:
    """Whether a tensor has a shape and no numbers, as in these passes."""
    return x.is_meta or isinstance(x, FakeTensor)


def _quiet_autocast(device: str) -> contextlib.AbstractContextManager:
    """No autocast around a trace: its dtypes are the network's own."""
    return torch.autocast(device, enabled=False) if device != 'meta' else contextlib.nullcontext()
