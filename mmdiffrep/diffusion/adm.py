"""guided-diffusion (ADM) checkpoints as diffusers' ``UNet2DModel``: which parameter goes where.

No second U-Net is needed: it is the same function, with the attentions' q, k and v split by head.
Settings and their limits are in :mod:`mmdiffrep.diffusion.adm_settings`, whose functions can be
imported from here too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .adm_settings import (
    ADM_SCHEDULER_CONFIG,
    AdmSettings,
    adm_scheduler_config,
    adm_to_diffusers_config,
    head_dim,
    infer_adm_config,
    is_adm_state_dict,
)
from .aliases import Block, adm_blocks

__all__ = [
    'ADM_SCHEDULER_CONFIG',
    'AdmKey',
    'adm_key_map',
    'adm_reader',
    'adm_scheduler_config',
    'adm_to_diffusers_config',
    'check_adm_shapes',
    'convert_adm_state_dict',
    'convert_adm_tensor',
    'infer_adm_config',
    'is_adm_state_dict',
]

_RES = {
    'in_layers.0': 'norm1',
    'in_layers.2': 'conv1',
    'emb_layers.1': 'time_emb_proj',
    'out_layers.0': 'norm2',
    'out_layers.3': 'conv2',
    'skip_connection': 'conv_shortcut',
}


class AdmKey(NamedTuple):
    """Where one ADM parameter goes."""

    names: tuple[str, ...]  # in the UNet2DModel
    how: str  # 'copy'; 'linear': from a 1×1 Conv1d; 'qkv_by_head', 'qkv_stacked': split in three
    shape: tuple[int, ...]  # in the ADM checkpoint
    heads: int = 1


def adm_key_map(adm_config: Mapping[str, Any]) -> dict[str, AdmKey]:
    """ADM parameter name -> where it goes in the ``UNet2DModel``, in ADM's order."""
    adm = AdmSettings.read(adm_config)
    unet_config = adm_to_diffusers_config(adm_config)
    width = adm.model_channels
    time = 4 * width
    keys = dict(_layer('time_embed.0', 'time_embedding.linear_1', time, width))
    keys |= _layer('time_embed.2', 'time_embedding.linear_2', time, time)
    if adm.num_classes:
        keys['label_emb.weight'] = AdmKey(
            ('class_embedding.weight',), 'copy', (adm.num_classes, time)
        )
    skips: list[int] = []
    for block in adm_blocks(unet_config):
        if block.name.startswith('output'):
            width += skips.pop()
        keys |= _block(adm, block, width)
        width = adm.widths[block.level]
        if block.name.startswith('input'):
            skips.append(width)
    keys |= _layer('out.0', 'conv_norm_out', width)
    return keys | dict(_layer('out.2', 'conv_out', adm.out_channels, width, 3, 3))


def _layer(name: str, target: str, *shape: int, how: str = 'copy') -> Iterator[tuple[str, AdmKey]]:
    """Weight and bias of one layer."""
    yield f'{name}.weight', AdmKey((f'{target}.weight',), how, shape)
    yield f'{name}.bias', AdmKey((f'{target}.bias',), 'copy', shape[:1])


def _block(adm: AdmSettings, block: Block, width_in: int) -> Iterator[tuple[str, AdmKey]]:
    width = adm.widths[block.level]
    for n, (kind, path) in enumerate(block.parts):
        name = f'{block.name}.{n}'
        if kind == 'conv':
            yield from _layer(name, path, width, adm.in_channels, 3, 3)
        elif kind == 'attn':
            yield from _attention(adm, name, path, width)
        elif kind == 'resample' and not adm.resblock_updown:
            conv = 'op' if block.name.startswith('input') else 'conv'
            yield from _layer(f'{name}.{conv}', f'{path}.conv', width, width, 3, 3)
        else:
            yield from _res_block(adm, name, path, width_in, width)
        width_in = width


def _res_block(
    adm: AdmSettings, name: str, path: str, width_in: int, width: int
) -> Iterator[tuple[str, AdmKey]]:
    shapes = {
        'in_layers.0': (width_in,),
        'in_layers.2': (width, width_in, 3, 3),
        'emb_layers.1': (width * (2 if adm.use_scale_shift_norm else 1), 4 * adm.model_channels),
        'out_layers.0': (width,),
        'out_layers.3': (width, width, 3, 3),
    }
    if width_in != width:
        shapes['skip_connection'] = (width, width_in, 1, 1)
    for part, shape in shapes.items():
        yield from _layer(f'{name}.{part}', f'{path}.{_RES[part]}', *shape)


def _attention(adm: AdmSettings, name: str, path: str, width: int) -> Iterator[tuple[str, AdmKey]]:
    yield from _layer(f'{name}.norm', f'{path}.group_norm', width)
    how = 'qkv_stacked' if adm.use_new_attention_order else 'qkv_by_head'
    heads = width // (head_dim(adm) or width)
    for leaf, shape in (('weight', (3 * width, width, 1)), ('bias', (3 * width,))):
        names = tuple(f'{path}.to_{x}.{leaf}' for x in 'qkv')
        yield f'{name}.qkv.{leaf}', AdmKey(names, how, shape, heads)
    yield from _layer(f'{name}.proj_out', f'{path}.to_out.0', width, width, 1, how='linear')


def check_adm_shapes(shapes: Mapping[str, tuple[int, ...]], key_map: Mapping[str, AdmKey]) -> None:
    """Raise a ValueError unless a checkpoint has exactly the expected parameters and shapes."""
    faults = [
        f'{key!r} is missing (nearest there: {_near(key, set(shapes) - set(key_map))})'
        for key in key_map if key not in shapes
    ]  # fmt: skip
    faults += [
        f'{key!r} is unknown (nearest in an ADM network like this: {_near(key, key_map)})'
        for key in shapes if key not in key_map
    ]  # fmt: skip
    faults += [
        f'{key!r} has shape {tuple(shapes[key])}, expected {entry.shape}'
        for key, entry in key_map.items() if key in shapes and tuple(shapes[key]) != entry.shape
    ]  # fmt: skip
    if faults:
        more = f'; and {len(faults) - 5} more' if len(faults) > 5 else ''
        raise ValueError(
            f'ADM checkpoint does not fit the network that its shapes describe ({len(key_map)} '
            f'parameters expected, {len(shapes)} given): {"; ".join(faults[:5])}{more}. '
            'Is the file complete and unchanged?'
        )


def _near(key: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(key, sorted(names), n=3, cutoff=0.6)


def convert_adm_tensor(tensor: Tensor, entry: AdmKey) -> dict[str, Tensor]:
    """One ADM parameter under its name or names in the ``UNet2DModel``."""
    if entry.how == 'copy':
        return {entry.names[0]: tensor}
    if tensor.ndim == 3:
        tensor = tensor[..., 0]  # a 1×1 Conv1d is a linear layer
    if entry.how == 'linear':
        return {entry.names[0]: tensor}
    if entry.how == 'qkv_by_head':  # rows: head 0's q, k, v, head 1's q, k, v …
        split = tensor.unflatten(0, (entry.heads, 3, -1)).unbind(1)
        return {name: x.flatten(0, 1).clone() for name, x in zip(entry.names, split, strict=True)}
    return dict(zip(entry.names, (x.clone() for x in tensor.chunk(3)), strict=True))


def adm_reader(
    read: Callable[[str], Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    adm_config: Mapping[str, Any],
) -> tuple[Callable[[str], Tensor], set[str]]:
    """Read a checkpoint by the ``UNet2DModel``'s names, tensor by tensor.

    Args:
        read: gives an ADM parameter by its name.
        shapes: the checkpoint's parameter shapes; checked to be complete.

    Returns:
        A function that gives a ``UNet2DModel`` parameter by its name, and all names that it knows.
    """
    key_map = adm_key_map(adm_config)
    check_adm_shapes(shapes, key_map)
    sources = {name: key for key, entry in key_map.items() for name in entry.names}

    def read_converted(name: str) -> Tensor:
        key = sources[name]
        return convert_adm_tensor(read(key), key_map[key])[name]

    return read_converted, set(sources)


def convert_adm_state_dict(
    state: Mapping[str, Tensor], adm_config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A whole ADM state dict as the ``UNet2DModel``'s; tensors that need no splitting are shared.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    key_map = adm_key_map(adm_config)
    check_adm_shapes({key: tuple(value.shape) for key, value in state.items()}, key_map)
    converted: dict[str, Tensor] = {}
    for key, entry in key_map.items():
        converted |= convert_adm_tensor(state[key], entry)
    return converted
