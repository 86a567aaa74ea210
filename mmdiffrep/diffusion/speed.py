"""Ways to do the same faster or smaller, for frozen networks: each is a switch, and none changes what is computed beyond rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

QUANTISED = ('int8', 'fp8')


class Remembered:
    """Stands for the ``forward`` of a frozen layer whose input is often the same: a fixed prompt's keys and values, a timestep's embedding.

    A batch that is one row expanded is computed as one row; the same tensor as the last time is not computed again. Where gradients pass, or torch.compile
    traces, the layer does what it did.

    Args:
        layer: whose ``forward`` it is.
        dims: dimensions of its input; others are not remembered.
        like: the output is given in this layer's dtype, so that whoever casts it gets the same tensor.
    """

    def __init__(self, layer: nn.Module, dims: int, like: nn.Module | None = None) -> None:
        self.layer, self.dims, self.like = layer, dims, like
        self.seen: tuple[Any, ...] = ()
        self.input: Tensor | None = None  # kept, so that nothing else can come to lie at its address
        self.output: Tensor | None = None

    def __call__(self, x: Tensor, *more: Any) -> Tensor:
        weights = list(self.layer.parameters())
        learns = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights))
        plain = learns or any(m is not None for m in more) or x.dim() != self.dims or x.is_meta or type(x) is not Tensor
        if plain or torch.compiler.is_compiling():
            return type(self.layer).forward(self.layer, x, *more)
        batch = len(x)
        row = x[:1] if batch > 1 and x.stride(0) == 0 else x
        seen = self._seen(row, weights)
        if seen is None:
            output = self._computed(row)
        else:
            if seen != self.seen or self.output is None:
                # it may be used in training after an inference_mode in which it was first asked for
                with torch.inference_mode(False), torch.no_grad():
                    self.output = self._computed(row)
                self.seen, self.input = seen, row
            output = self.output
        return output.expand(batch, *output.shape[1:]) if len(output) != batch else output

    def _computed(self, row: Tensor) -> Tensor:
        output = type(self.layer).forward(self.layer, row)
        return output if self.like is None else output.to(next(self.like.parameters()).dtype)

    def _seen(self, x: Tensor, weights: list[nn.Parameter]) -> tuple[Any, ...] | None:
        """What the output depends on; None where a change would not be noticed."""
        if x.is_inference() or any(w.is_inference() or type(w.data) is not Tensor for w in weights):
            return None
        kind = x.device.type
        cast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        dtype = None if self.like is None else next(self.like.parameters()).dtype
        return (
            x.data_ptr(), x._version, x.shape, x.stride(), x.dtype, x.device, cast, dtype, *((w.data_ptr(), w._version, w.dtype) for w in weights)
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembered:
        import copy

        return Remembered(copy.deepcopy(self.layer, memo), self.dims, copy.deepcopy(self.like, memo))


def remember_what_is_told(network: nn.Module) -> None:
    """Let a text-conditional U-Net of diffusers compute a timestep's embedding and its cross-attentions a prompt's keys and values once."""
    network.time_proj.forward = Remembered(network.time_proj, 1, like=network.time_embedding)
    network.time_embedding.forward = Remembered(network.time_embedding, 2)
    for module in network.modules():
        if getattr(module, 'is_cross_attention', False):
            for layer in (module.to_k, module.to_v):
                if type(layer) is nn.Linear:
                    layer.forward = Remembered(layer, 3)


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
