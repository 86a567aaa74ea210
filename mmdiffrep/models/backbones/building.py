"""Building the parts of a DiffusionBackbone from their configs, and setting its network up."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.diffusion.speed import fuse_self_attention, quantise
from mmdiffrep.diffusion.taps import VARYING, find_module
from mmdiffrep.registry import MODELS

from .windows import Windows

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


def build_denoiser(denoiser: Mapping[str, Any] | Denoiser, taps: Sequence[str]) -> Denoiser:
    """A denoiser that is cut behind its last tap."""
    if isinstance(denoiser, Denoiser):
        denoiser.cut(taps)
        return denoiser
    return MODELS.build(dict(denoiser, keep_taps=list(taps)))


def set_up(
    denoiser: Denoiser,
    taps: Sequence[str],
    trainable: bool | Sequence[str],
    with_cp: bool,
    dtype: str | None,
    channels_last: bool,
    fuse_qkv: bool = False,
    quantised: str | None = None,
) -> torch.dtype | None:
    """Set what is trained, precision, memory format, checkpointing and fused or quantised weights of the network."""
    network = denoiser.network
    network.requires_grad_(False)
    parts = [''] if trainable is True else list(trainable or [])
    for path in parts:
        find_module(network, path).requires_grad_(True)
    if parts:
        # no activation depends on these; DDP would wait for their gradients
        for name in denoiser.unused_parameters(taps):
            network.get_parameter(name).requires_grad_(False)
    amp_dtype = DTYPES[dtype] if dtype else None
    if amp_dtype is not None and not parts:
        network.to(amp_dtype)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if with_cp:
        denoiser.set_checkpointing(True)
    if parts and (fuse_qkv or quantised):
        raise ValueError('fuse_qkv and quantise are for frozen networks, and this one is trained (trainable): leave them out')
    if fuse_qkv:
        fuse_self_attention(network)
        for name in taps:  # a projection may have been fused away
            denoiser.tap(name)
    if quantised:
        quantise(network, quantised)
    return amp_dtype


def compile_looks(denoiser: Denoiser, taps: Sequence[str], how: bool | str | Mapping[str, Any], with_cp: bool) -> None:
    """Let looks that read ``taps`` be compiled; ValueError where they cannot be."""
    if with_cp:
        raise ValueError('compile and with_cp were given: a compiled look recomputes nothing, leave one out')
    settings = dict(how) if isinstance(how, Mapping) else dict(mode=how) if isinstance(how, str) else {}
    try:
        denoiser.compile(taps, **settings)
    except TypeError as error:
        raise ValueError(f'compile={how!r} does not fit ({error}); allowed: True, a mode, or dict(mode=…, dynamic=…, backend=…)') from error


def build_conditioner(
    conditioner: Mapping[str, Any] | None, denoiser: Denoiser
) -> nn.Module | None:
    """The trained part that tells the network more; ValueError where it does not fit the network."""
    if conditioner is None:
        return None
    channels = denoiser.condition_channels()
    try:
        return MODELS.build(dict(conditioner, **channels))
    except TypeError as error:
        raise ValueError(
            f'conditioner {conditioner.get("type")!r} does not fit {type(denoiser).__name__}, which says '
            f'{channels or "nothing"} of what it can be told: {error}. TextAdapter and ImplicitCaptioner belong to a network that is '
            'told a text (mmdiffrep.StableDiffusion)'
        ) from error


def build_windows(windows: Mapping[str, Any] | None) -> Windows | None:
    """ValueError for an entry that windows have not."""
    try:
        return None if windows is None else Windows(**windows)
    except TypeError as error:
        raise ValueError(
            f'windows={windows!r} does not fit ({error}); allowed: None, or dict(size=512, batch=8)'
        ) from error


def build_adapter(adapter: Mapping[str, Any] | None, infos: Sequence[Any]) -> nn.Module | None:
    """The adapter on taps of these infos; ValueError where it fits no taps like them or is none."""
    if adapter is None:
        return None
    varying = sorted({info.tap for info in infos if info.channels == VARYING})
    if varying:
        raise ValueError(
            f'taps {varying} give a channel for each place of the image, so that their number depends on its size: no adapter can '
            'be built on them. Leave the adapter out, or tap the probabilities of a cross-attention (attn2:probs), whose '
            "channels are the text's tokens"
        )
    given = sorted({'in_channels', 'in_strides'} & set(adapter))
    if given:
        warnings.warn(
            f'adapter: {given} are filled in from the taps inside DiffusionBackbone; what the config gives is not used',
            stacklevel=2,
        )
    config = dict(
        adapter,
        in_channels=[info.channels for info in infos],
        in_strides=[info.stride for info in infos],
    )
    try:
        module = MODELS.build(config)
    except TypeError as error:
        raise ValueError(
            f'adapter {adapter.get("type")!r} does not fit: {error}. An adapter takes in_channels and in_strides '
            "and has out_channels and out_strides; this project's are 'mmdiffrep.StridePyramid', 'mmdiffrep.StrideConcat' and "
            "'mmdiffrep.ConcatUpsample'"
        ) from error
    if not hasattr(module, 'out_strides') or not hasattr(module, 'out_channels'):
        raise ValueError(
            f'adapter {adapter.get("type")!r} says no out_channels and out_strides: it is not an adapter. Use '
            "'mmdiffrep.StridePyramid' or 'mmdiffrep.ConcatUpsample', or put it in the model's `neck`"
        )
    return module
