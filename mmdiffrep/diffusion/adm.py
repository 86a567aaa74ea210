"""guided-diffusion (ADM) checkpoints as diffusers' ``UNet2DModel``.

ADM: Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233; code (MIT):
https://github.com/openai/guided-diffusion. An ADM config here is a dict of that code's ``UNetModel`` arguments; it is
class-conditional if ``num_classes`` is set and has a learned variance if ``out_channels == 2 * in_channels``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from .aliases import Block, adm_blocks

# Linear betas, 1000 steps, epsilon, learned variance: as all published 128², 256² and 512² ADM models were trained.
ADM_SCHEDULER_CONFIG: dict[str, Any] = dict(
    _class_name='DDPMScheduler', num_train_timesteps=1000, beta_schedule='linear', beta_start=1e-4,
    beta_end=0.02, prediction_type='epsilon', variance_type='learned_range', clip_sample=True,
)  # fmt: skip

_PART_KINDS = dict(
    in_layers='res', emb_layers='res', out_layers='res', skip_connection='res',
    norm='attn', qkv='attn', proj_out='attn', op='conv', conv='conv',
)  # fmt: skip
_RES = {'in_layers.0': 'norm1', 'in_layers.2': 'conv1', 'emb_layers.1': 'time_emb_proj',
        'out_layers.0': 'norm2', 'out_layers.3': 'conv2', 'skip_connection': 'conv_shortcut'}  # fmt: skip


class AdmKey(NamedTuple):
    """Where one ADM parameter goes."""

    names: tuple[str, ...]  # in the UNet2DModel
    how: str  # 'copy'; 'linear': a 1×1 Conv1d's weight; 'qkv_by_head', 'qkv_stacked': to be split in three
    shape: tuple[int, ...]  # in the ADM checkpoint
    heads: int = 1


@dataclasses.dataclass(frozen=True)
class _Settings:
    """``UNetModel``'s arguments with its defaults; attention_resolutions are downsampling factors."""

    model_channels: int
    out_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    in_channels: int = 3
    image_size: int | None = None  # not used by the network
    channel_mult: tuple[float, ...] = (1, 2, 4, 8)
    conv_resample: bool = True
    num_classes: int | None = None
    num_heads: int = 1
    num_head_channels: int = -1  # -1: num_heads heads of any width
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False

    @classmethod
    def read(cls, adm_config: Mapping[str, Any]) -> _Settings:
        allowed = [field.name for field in dataclasses.fields(cls)]
        try:
            return cls(**adm_config)
        except TypeError as error:
            raise ValueError(
                f"ADM config {sorted(adm_config)} is not guided-diffusion's UNetModel arguments ({error}); "
                f'allowed: {allowed}, of which the first four are needed'
            ) from None

    @property
    def widths(self) -> list[int]:
        return [int(mult * self.model_channels) for mult in self.channel_mult]

    def attends(self, level: int) -> bool:
        return 2**level in self.attention_resolutions


def is_adm_state_dict(keys: Iterable[str]) -> bool:
    """Whether parameter names are those of guided-diffusion's ``UNetModel`` (a text-conditioned U-Net is none)."""
    keys = list(keys)
    roots = {key.partition('.')[0] for key in keys}
    return {'time_embed', 'input_blocks', 'middle_block', 'output_blocks'} <= roots and not any(
        '.transformer_blocks.' in key for key in keys
    )


def infer_adm_config(
    shapes: Mapping[str, tuple[int, ...]],
    num_head_channels: int = 64,
    num_heads: int | None = None,
    use_new_attention_order: bool = False,
    image_size: int | None = None,
) -> dict[str, Any]:
    """ADM's settings, read from a checkpoint's parameter shapes.

    Args:
        shapes: parameter name -> shape.
        num_head_channels: channels of an attention head. Shapes do not tell; published 256² models have 64.
        num_heads: heads of every attention; if given, ``num_head_channels`` does not count.
        use_new_attention_order: q, k, v are stacked before they are split into heads (published models: False).
        image_size: the training images' side in pixels; only kept as the network's nominal size.

    Raises:
        ValueError: the names are not laid out as ADM's.
    """
    parts = _parts(shapes)
    outputs = 1 + max((k for side, k in parts if side == 'output'), default=-1)
    inputs = 1 + max((k for side, k in parts if side == 'input'), default=-1)
    # An output block with a second ResBlock or a convolution ends a level.
    resamplers = [
        kind
        for (side, _), block in parts.items()
        for n, kind in block.items()
        if side == 'output' and n > 0 and kind != 'attn'
    ]
    levels = len(resamplers) + 1
    layers = outputs // levels - 1  # ResBlocks a level on the way down
    if outputs % levels or inputs != outputs or layers < 1:
        raise ValueError(
            f'{inputs} input and {outputs} output blocks with {len(resamplers)} upsamplers are no ADM network: it has as '
            'many input as output blocks, levels × (res blocks + 1). Is the checkpoint complete?'
        )
    firsts = [1 + level * (layers + 1) for level in range(levels)]  # a level's first ResBlock
    model_channels = _shape(shapes, 'time_embed.0.weight')[1]
    widths = [_shape(shapes, f'input_blocks.{k}.0.in_layers.2.weight')[0] for k in firsts]
    settings = _Settings(
        image_size=image_size,
        in_channels=_shape(shapes, 'input_blocks.0.0.weight')[1],
        model_channels=model_channels,
        out_channels=_shape(shapes, 'out.2.weight')[0],
        num_res_blocks=layers,
        attention_resolutions=tuple(
            2**level for level, k in enumerate(firsts) if parts['input', k].get(1) == 'attn'
        ),
        channel_mult=tuple(
            w // model_channels if w % model_channels == 0 else w / model_channels for w in widths
        ),
        num_classes=shapes['label_emb.weight'][0] if 'label_emb.weight' in shapes else None,
        num_heads=num_heads or 1,
        num_head_channels=-1 if num_heads else num_head_channels,
        use_scale_shift_norm=_shape(shapes, 'input_blocks.1.0.emb_layers.1.weight')[0] == 2 * widths[0],
        resblock_updown='res' in resamplers,
        use_new_attention_order=use_new_attention_order,
    )
    return dataclasses.asdict(settings)


def _parts(keys: Iterable[str]) -> dict[tuple[str, int], dict[int, str]]:
    """('input' or 'output', block number) -> part number -> kind."""
    parts: dict[tuple[str, int], dict[int, str]] = {}
    for key in keys:
        if match := re.match(r'(in|out)put_blocks\.(\d+)\.(\d+)\.(\w+)', key):
            side, block, part, what = match.groups()
            kinds = parts.setdefault((f'{side}put', int(block)), {})
            kinds[int(part)] = _PART_KINDS.get(what, 'conv')
    return parts


def _shape(shapes: Mapping[str, tuple[int, ...]], key: str) -> tuple[int, ...]:
    if key not in shapes:
        near = difflib.get_close_matches(key, list(shapes), n=3, cutoff=0.3)
        raise ValueError(
            f'ADM checkpoint: {key!r} is missing, without which its settings cannot be read; nearest names there: {near}'
        )
    return tuple(shapes[key])


def adm_to_diffusers_config(adm_config: Mapping[str, Any]) -> dict[str, Any]:
    """``UNet2DModel`` arguments for the same network.

    Raises:
        ValueError: a setting that ``UNet2DModel`` cannot express.
    """
    adm = _Settings.read(adm_config)
    if adm.widths[0] != adm.model_channels:
        raise ValueError(
            f'ADM with channel_mult={tuple(adm.channel_mult)}: UNet2DModel has as many time frequencies as first '
            f'channels ({adm.widths[0]}), this network {adm.model_channels}. Use a model whose channel_mult starts with 1 '
            '(the published 64² and 256² ones do, the 512² one does not)'
        )
    if len(adm.widths) > 1 and not (adm.conv_resample or adm.resblock_updown):
        raise ValueError(
            'ADM with conv_resample=False: UNet2DModel always resamples by ResBlocks or convolutions, never by pooling alone'
        )
    if odd := [width for width in adm.widths if width % 32]:
        raise ValueError(
            f'ADM normalises in 32 groups; channels {odd} are not multiples of 32'
        )
    resample = 'resnet' if adm.resblock_updown else 'conv'
    plain = ('ResnetDownsampleBlock2D', 'ResnetUpsampleBlock2D') if adm.resblock_updown else ('DownBlock2D', 'UpBlock2D')  # fmt: skip
    attends = [adm.attends(level) for level in range(len(adm.widths))]
    return dict(
        sample_size=adm.image_size,
        in_channels=adm.in_channels,
        out_channels=adm.out_channels,
        block_out_channels=adm.widths,
        layers_per_block=adm.num_res_blocks,
        down_block_types=['AttnDownBlock2D' if a else plain[0] for a in attends],
        up_block_types=['AttnUpBlock2D' if a else plain[1] for a in reversed(attends)],
        downsample_type=resample,
        upsample_type=resample,
        downsample_padding=1,
        attention_head_dim=_head_dim(adm),
        resnet_time_scale_shift='scale_shift' if adm.use_scale_shift_norm else 'default',
        norm_num_groups=32,
        attn_norm_num_groups=32,  # the middle attention would be without a norm
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        num_class_embeds=adm.num_classes,
    )


def _head_dim(adm: _Settings) -> int | None:
    """Channels of an attention head; None: one head, as wide as its level."""
    widths = [w for level, w in enumerate(adm.widths) if adm.attends(level)] + [adm.widths[-1]]
    given = f'num_heads={adm.num_heads}'
    if adm.num_head_channels != -1:
        given = f'num_head_channels={adm.num_head_channels}'
        dims = {adm.num_head_channels}
    elif adm.num_heads == 1:
        return None
    else:
        dims = {width // adm.num_heads for width in widths}
    dim = max(dims)
    if len(dims) > 1 or dim < 1 or any(width % dim for width in widths):
        raise ValueError(
            f'ADM with {given}: UNet2DModel has one width for all attention heads, which must divide the attention '
            f"levels' channels {widths}. Give the model's own num_head_channels (or num_heads) and check them"
        )
    return dim


def adm_key_map(adm_config: Mapping[str, Any]) -> dict[str, AdmKey]:
    """ADM parameter name -> its names in the ``UNet2DModel``, how it gets there, its shape; in ADM's order."""
    adm = _Settings.read(adm_config)
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


def _block(adm: _Settings, block: Block, width_in: int) -> Iterator[tuple[str, AdmKey]]:
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


def _res_block(adm: _Settings, name: str, path: str, width_in: int, width: int) -> Iterator[tuple[str, AdmKey]]:  # fmt: skip
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


def _attention(adm: _Settings, name: str, path: str, width: int) -> Iterator[tuple[str, AdmKey]]:
    yield from _layer(f'{name}.norm', f'{path}.group_norm', width)
    how = 'qkv_stacked' if adm.use_new_attention_order else 'qkv_by_head'
    heads = width // (_head_dim(adm) or width)
    for leaf, shape in (('weight', (3 * width, width, 1)), ('bias', (3 * width,))):
        names = tuple(f'{path}.to_{x}.{leaf}' for x in 'qkv')
        yield f'{name}.qkv.{leaf}', AdmKey(names, how, shape, heads)
    yield from _layer(f'{name}.proj_out', f'{path}.to_out.0', width, width, 1, how='linear')


def check_adm_shapes(
    shapes: Mapping[str, tuple[int, ...]], key_map: Mapping[str, AdmKey]
) -> None:
    """Raise a ValueError unless a checkpoint has exactly the parameters and shapes that its settings ask for."""
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
            f'ADM checkpoint does not fit the network that its shapes describe ({len(key_map)} parameters expected, '
            f'{len(shapes)} given): {"; ".join(faults[:5])}{more}. Is the file complete and unchanged?'
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
        return {name: x.flatten(0, 1).contiguous() for name, x in zip(entry.names, split)}
    return dict(zip(entry.names, (x.contiguous() for x in tensor.chunk(3))))


def adm_reader(
    read: Callable[[str], Tensor], shapes: Mapping[str, tuple[int, ...]], adm_config: Mapping[str, Any]
) -> tuple[Callable[[str], Tensor], set[str]]:  # fmt: skip
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
    """A whole ADM state dict as a ``UNet2DModel`` state dict (tensors are shared where they need no splitting).

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    key_map = adm_key_map(adm_config)
    check_adm_shapes({key: tuple(value.shape) for key, value in state.items()}, key_map)
    converted: dict[str, Tensor] = {}
    for key, entry in key_map.items():
        converted |= convert_adm_tensor(state[key], entry)
    return converted


def adm_scheduler_config(
    adm_config: Mapping[str, Any], noise_schedule: str = 'linear', diffusion_steps: int = 1000
) -> dict[str, Any]:
    """The diffusers scheduler of an ADM model; ``noise_schedule`` is 'linear' or 'cosine' (published 64² models).

    Raises:
        ValueError: another noise schedule.
    """
    if noise_schedule not in ('linear', 'cosine'):
        raise ValueError(
            f"noise_schedule={noise_schedule!r}: guided-diffusion has 'linear' and 'cosine'"
        )
    adm = _Settings.read(adm_config)
    scale = 1000 / diffusion_steps  # guided-diffusion keeps the sum of the betas
    return ADM_SCHEDULER_CONFIG | dict(
        num_train_timesteps=diffusion_steps,
        beta_schedule='linear' if noise_schedule == 'linear' else 'squaredcos_cap_v2',
        beta_start=1e-4 * scale,
        beta_end=0.02 * scale,
        variance_type='learned_range' if adm.out_channels == 2 * adm.in_channels else 'fixed_large',
    )
