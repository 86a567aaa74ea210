"""Floating point operations and parameters of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

CONVENTION = (
    "2 FLOPs a multiply-add; counted is what torch's counter knows: matrix products, convolutions and attention, not "
    'norms, activations, resizing or noise'
)


def count_flops(call: Callable[[], Any]) -> int:
    """FLOPs of a call: 2 a multiply-add, of matrix products, convolutions and attention; a backward pass counts too."""
    counter = FlopCounterMode(display=False, custom_mapping=_cpu_attention())
    with _no_fused_layers(), counter:
        call()
    return counter.get_total_flops()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of a model's parameters, each counted once.

    Returns:
        ``parameters``: all; ``trained``: those that get gradients; ``outside``: those that lie outside the module tree, as
        the frozen weights of a DenoiserHolder do (they are among ``parameters``).
    """
    inside = {id(p): p for p in model.parameters()}
    everywhere = {id(p): p for root in _roots(model) for p in root.parameters()}
    return dict(
        parameters=sum(p.numel() for p in everywhere.values()),
        trained=sum(p.numel() for p in everywhere.values() if p.requires_grad),
        outside=sum(p.numel() for key, p in everywhere.items() if key not in inside),
    )


def weight_bytes(model: nn.Module) -> int:
    """Memory of a model's parameters and buffers, with those outside the module tree."""
    tensors = {id(t): t for root in _roots(model) for t in [*root.parameters(), *root.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _roots(model: nn.Module) -> list[nn.Module]:
    """The model, and the modules that its modules keep in plain lists, tuples or dicts, where torch does not see them."""
    roots, seen = [], set()
    waiting = [model]
    while waiting:
        root = waiting.pop()
        if id(root) in seen:
            continue
        roots.append(root)
        for module in root.modules():
            seen.add(id(module))
            for name, value in vars(module).items():
                if name == '_modules' or not isinstance(value, (list, tuple, dict)):
                    continue
                items = value.values() if isinstance(value, dict) else value
                waiting += [item for item in items if isinstance(item, nn.Module)]
    return roots


def _cpu_attention() -> dict[Any, Any]:
    """What torch's counter leaves out: attention has an operator of its own on the CPU (seen in torch 2.14)."""

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    return {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }


@contextlib.contextmanager
def _no_fused_layers() -> Iterator[None]:
    """torch's transformer layers have a fused inference path of which the counter sees nothing."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
