"""Shortening a U-Net behind its last tap, so that nothing behind is kept or run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .taps import Tap


class PassThrough(nn.Module):
    """Stands where a module was that is no longer needed; gives back its first argument."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        # as transformers in cross-attention blocks are asked to
        return (hidden_states,) if kwargs.get('return_dict') is False else hidden_states


# the order in which a U-Net block of diffusers runs its parts; resnets[i] and attentions[i] alternate
_BLOCK_LISTS = ('resnets', 'attentions')
_BLOCK_TAILS = ('downsamplers', 'upsamplers')


def shorten_unet(unet: nn.Module, last: Tap) -> None:
    """Drop what runs after ``last`` in a U-Net of diffusers (``UNet2DModel``, ``UNet2DConditionModel``).

    Blocks behind it go, the output head becomes a pass-through, and inside the last block the list entries behind it go.
    What is finer (the middle of a ResBlock) is kept: there the forward pass is stopped.
    """
    shorten_stages(unet, last, ('conv_in', 'down_blocks', 'mid_block', 'up_blocks'))


def shorten_stages(unet: nn.Module, last: Tap, order: tuple[str, ...]) -> None:
    """The same for a network that runs the stages ``order`` and then its head: a U-Net, an autoencoder's encoder or decoder."""
    parts = last.path.split('.')
    stage = parts[0]
    if stage not in order:
        return  # the time embedding or the head itself: nothing to gain
    position = order.index(stage)
    for name in ('conv_norm_out', 'conv_act', 'conv_out'):
        if getattr(unet, name, None) is not None:
            setattr(unet, name, PassThrough())
    for name in order[position + 1 :]:
        if name.endswith('blocks'):
            setattr(unet, name, nn.ModuleList())
        elif name == 'mid_block':
            # U-Nets skip a middle that is None; an autoencoder calls it
            unet.mid_block = (
                None if 'down_blocks' in order and 'up_blocks' in order else PassThrough()
            )
    if last == Tap('mid_block', 'in'):
        unet.mid_block = PassThrough()
    if stage in ('down_blocks', 'up_blocks') and len(parts) > 1:
        index = int(parts[1])
        setattr(unet, stage, getattr(unet, stage)[: index + 1])
        _shorten_block(getattr(unet, stage)[index], parts[2:], last)
    if stage == 'mid_block' and len(parts) > 2:
        _shorten_middle(unet.mid_block, parts[1], int(parts[2]))


def _shorten_block(block: nn.Module, inside: list[str], last: Tap) -> None:
    """``inside`` is the path within the block: [], or ['resnets', '1', …], ['upsamplers', '0'] …"""
    if not inside:
        if last.side == 'in':  # the block's own work is behind the tap
            for name in _BLOCK_LISTS:
                for index in range(len(getattr(block, name, None) or ())):
                    _replace(block, name, index)
            for name in _BLOCK_TAILS:
                _drop(block, name)
        return
    kind, index = inside[0], int(inside[1]) if len(inside) > 1 else 0
    if kind not in _BLOCK_LISTS:
        return
    for name in _BLOCK_TAILS:
        _drop(block, name)
    for name in _BLOCK_LISTS:
        modules = getattr(block, name, None)
        if modules is not None:
            setattr(block, name, modules[: index + 1])
    entry = last.side == 'in' and len(inside) == 2
    if kind == 'resnets':
        # the attention behind the tapped ResBlock keeps its place, since blocks walk both lists together
        _replace(block, 'attentions', index)
        if entry:
            _replace(block, 'resnets', index)
    elif entry:
        _replace(block, 'attentions', index)


def _shorten_middle(block: nn.Module, kind: str, index: int) -> None:
    """Here the first ResBlock stands alone, then attentions[i] and resnets[i + 1] alternate."""
    if kind == 'resnets':
        block.resnets, block.attentions = block.resnets[: index + 1], block.attentions[:index]
    elif kind == 'attentions':
        block.attentions = block.attentions[: index + 1]
        block.resnets = block.resnets[: index + 2]
        _replace(block, 'resnets', index + 1)


def _drop(block: nn.Module, name: str) -> None:
    if getattr(block, name, None) is not None:
        setattr(block, name, None)


def _replace(block: nn.Module, name: str, index: int) -> None:
    modules = getattr(block, name, None)
    if modules is not None and index < len(modules) and modules[index] is not None:
        modules[index] = PassThrough()
