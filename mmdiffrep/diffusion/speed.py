"""Ways to do the same faster or smaller, for frozen networks: each is a switch, and none changes what is computed beyond rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

QUANTISED = ('int8', 'fp8')


class Remembered:
    """Stands for the ``forward`` of a frozen linear layer whose input is often the same: a fixed prompt's keys and values.

    A batch that is one row expanded is computed as one row; the same tensor as the last time is not computed again. Where gradients pass, or torch.compile
    traces, the layer does what it did.
    """

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self.seen: tuple[Any, ...] = ()
        self.input: Tensor | None = None  # kept, so that nothing else can come to lie at its address
        self.output: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        learns = torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad)
        if torch.compiler.is_compiling() or learns or x.dim() != 3 or x.is_meta or type(x) is not Tensor:
            return nn.Linear.forward(layer, x)
        batch = len(x)
        row = x[:1] if batch > 1 and x.stride(0) == 0 else x
        seen = self._seen(row)
        if seen is None or seen != self.seen:
            self.output = nn.Linear.forward(layer, row)
            self.seen, self.input = (seen, row) if seen is not None else ((), None)
        output = self.output
        assert output is not None
        if seen is None:
            self.output = None
        return output.expand(batch, -1, -1) if len(output) != batch else output

    def _seen(self, x: Tensor) -> tuple[Any, ...] | None:
        """What the output depends on; None where a change would not be noticed."""
        weight, kind = self.layer.weight, x.device.type
        if x.is_inference() or weight.is_inference() or type(weight.data) is not Tensor:
            return None
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return (x.data_ptr(), x._version, x.shape, x.stride(), x.dtype, x.device, weight.data_ptr(), weight._version, weight.dtype, cast)

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        import copy

        return Remembered(copy.deepcopy(self.layer, memo))


def remember_text(network: nn.Module) -> None:
    """Let the cross-attentions of a network of diffusers compute a prompt's keys and values once."""
    for module in network.modules():
        if getattr(module, 'is_cross_attention', False):
            for layer in (module.to_k, module.to_v):
                if type(layer) is nn.Linear:
                    layer.forward = Remembered(layer)


def fuse_self_attention(network: nn.Module) -> int:
    """One product for queries, keys and values of each self-attention of a frozen network. Returns how many were fused.

    The separate projections go, so that their outputs cannot be tapped afterwards.
    """
    from diffusers.models.attention_processor import (
        AttnProcessor,
        AttnProcessor2_0,
        FusedAttnProcessor2_0,
    )

    count = 0
    for module in network.modules():
        if not hasattr(module, 'fuse_projections') or getattr(module, 'is_cross_attention', True):
            continue
        if not isinstance(getattr(module, 'processor', None), (AttnProcessor, AttnProcessor2_0)):
            continue
        module.use_bias = module.to_q.bias is not None  # an attention read from an old checkpoint does not say so
        with torch.no_grad():
            module.fuse_projections()
        module.to_qkv.requires_grad_(False)
        module.set_processor(FusedAttnProcessor2_0())
        for name in ('to_q', 'to_k', 'to_v'):
            delattr(module, name)
        count += 1
    return count


def quantise(network: nn.Module, how: str) -> None:
    """Weights of linear layers as 8-bit numbers (torchao's weight-only quantisation; convolutions stay).

    Raises:
        ValueError: an unknown kind.
        ModuleNotFoundError: torchao is not installed.
    """
    if how not in QUANTISED:
        raise ValueError(f'quantise={how!r} is unknown; allowed: {QUANTISED} or None')
    try:
        from torchao import quantization
    except ImportError as error:
        raise ModuleNotFoundError("quantise needs torchao: pip install 'mmdiffrep[quant]'") from error
    kinds = dict(int8='Int8WeightOnlyConfig', fp8='Float8WeightOnlyConfig')
    quantization.quantize_(network, getattr(quantization, kinds[how])())
