"""Settings of guided-diffusion (ADM) networks: from parameter shapes to diffusers configs.

ADM: Dhariwal and Nichol, 2021, https://arxiv.org/abs/2105.05233; code (MIT):
https://github.com/openai/guided-diffusion. An ADM config here is a dict of that code's
``UNetModel`` arguments; it is class-conditional if ``num_classes`` is set and has a learned
variance if ``out_channels == 2 * in_channels``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

# How the published 128², 256² and 512² ADM models were trained
ADM_SCHEDULER_CONFIG: dict[str, Any] = dict(
    _class_name='DDPMScheduler', num_train_timesteps=1000, beta_schedule='linear', beta_start=1e-4,
    beta_end=0.02, prediction_type='epsilon', variance_type='learned_range', clip_sample=True,
)  # fmt: skip

_PART_KINDS = dict(
    in_layers='res', emb_layers='res', out_layers='res', skip_connection='res',
    norm='attn', qkv='attn', proj_out='attn', op='conv', conv='conv',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AdmSettings:
    """``UNetModel``'s arguments, its defaults; attention_resolutions are downsampling factors."""

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
    def read(cls, adm_config: Mapping[str, Any]) -> AdmSettings:
        allowed = [field.name for field in dataclasses.fields(cls)]
        try:
            return cls(**adm_config)
        except TypeError as error:
            raise ValueError(
                f"ADM config {sorted(adm_config)} is not guided-diffusion's UNetModel arguments "
                f'({error}); '
                f'allowed: {allowed}, of which the first four are needed'
            ) from None

    @property
    def widths(self) -> list[int]:
        return [int(mult * self.model_channels) for mult in self.channel_mult]

    def attends(self, level: int) -> bool:
        return 2**level in self.attention_resolutions


def is_adm_state_dict(keys: Iterable[str]) -> bool:
    """Whether parameter names are those of ``UNetModel`` (a text-conditioned U-Net's are not)."""
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
        num_head_channels: channels of an attention head, which shapes do not tell; published 256²
            models have 64.
        num_heads: heads of every attention; if given, ``num_head_channels`` does not count.
        use_new_attention_order: q, k, v are stacked before they are split into heads (published
            models: False).
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
            f'{inputs} input and {outputs} output blocks with {len(resamplers)} upsamplers are '
            'no ADM network: it has as many input as output blocks, levels × (res blocks + 1). '
            'Is the checkpoint complete?'
        )
    firsts = [1 + level * (layers + 1) for level in range(levels)]  # a level's first ResBlock
    model_channels = _shape(shapes, 'time_embed.0.weight')[1]
    widths = [_shape(shapes, f'input_blocks.{k}.0.in_layers.2.weight')[0] for k in firsts]
    settings = AdmSettings(
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
        num_classes=_shape(shapes, 'label_emb.weight')[0] if 'label_emb.weight' in shapes else None,
        num_heads=num_heads or 1,
        num_head_channels=-1 if num_heads else num_head_channels,
        use_scale_shift_norm=_shape(shapes, 'input_blocks.1.0.emb_layers.1.weight')[0]
        == 2 * widths[0],
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
            f'ADM checkpoint: {key!r} is missing, without which its settings cannot be read; '
            f'nearest names there: {near}'
        )
    if len(shapes[key]) < 2:
        raise ValueError(
            f'ADM checkpoint: {key!r} has shape {tuple(shapes[key])}, expected a matrix'
        )
    return tuple(shapes[key])


def adm_to_diffusers_config(adm_config: Mapping[str, Any]) -> dict[str, Any]:
    """``UNet2DModel`` arguments for the same network.

    Raises:
        ValueError: a setting that ``UNet2DModel`` cannot express.
    """
    adm = AdmSettings.read(adm_config)
    if adm.widths[0] != adm.model_channels:
        raise ValueError(
            f'ADM with channel_mult={tuple(adm.channel_mult)}: UNet2DModel has as many time '
            f'frequencies as first channels ({adm.widths[0]}), this network {adm.model_channels}. '
            'Use a model whose channel_mult starts with 1 '
            '(of the published ones, the 256² one does, the 512² one does not)'
        )
    if len(adm.widths) > 1 and not (adm.conv_resample or adm.resblock_updown):
        raise ValueError(
            'ADM with conv_resample=False: UNet2DModel always resamples by ResBlocks or '
            'convolutions, never by pooling alone'
        )
    if odd := [width for width in adm.widths if width % 32]:
        raise ValueError(f'ADM normalises in 32 groups; channels {odd} are not multiples of 32')
    resample = 'resnet' if adm.resblock_updown else 'conv'
    plain = ('DownBlock2D', 'UpBlock2D')
    if adm.resblock_updown:
        plain = ('ResnetDownsampleBlock2D', 'ResnetUpsampleBlock2D')
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
        attention_head_dim=head_dim(adm),
        resnet_time_scale_shift='scale_shift' if adm.use_scale_shift_norm else 'default',
        norm_num_groups=32,
        attn_norm_num_groups=32,  # the middle attention would be without a norm
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        num_class_embeds=adm.num_classes,
    )


def head_dim(adm: AdmSettings) -> int | None:
    """Channels of an attention head; None: one head, as wide as its level."""
    widths = [w for level, w in enumerate(adm.widths) if adm.attends(level)]
    widths = sorted({*widths, adm.widths[-1]})  # the middle block always attends
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
            f'ADM with {given}: UNet2DModel has one width for all attention heads, which must '
            f"divide the attention levels' channels {widths}. Give the model's own "
            'num_head_channels (or num_heads)'
        )
    return dim


def adm_scheduler_config(
    adm_config: Mapping[str, Any], noise_schedule: str = 'linear', diffusion_steps: int = 1000
) -> dict[str, Any]:
    """The diffusers scheduler of an ADM model; published 64² models have the 'cosine' schedule.

    Raises:
        ValueError: another noise schedule.
    """
    if noise_schedule not in ('linear', 'cosine'):
        raise ValueError(
            f"noise_schedule={noise_schedule!r}: guided-diffusion has 'linear' and 'cosine'"
        )
    adm = AdmSettings.read(adm_config)
    scale = 1000 / diffusion_steps  # guided-diffusion keeps the sum of the betas
    return ADM_SCHEDULER_CONFIG | dict(
        num_train_timesteps=diffusion_steps,
        beta_schedule='linear' if noise_schedule == 'linear' else 'squaredcos_cap_v2',
        beta_start=1e-4 * scale,
        beta_end=0.02 * scale,
        variance_type='learned_range' if adm.out_channels == 2 * adm.in_channels else 'fixed_large',
    )
