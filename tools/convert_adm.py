#!/usr/bin/env python
"""Write a guided-diffusion (ADM) checkpoint as a diffusers folder with a card."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmdiffrep.diffusion import adm
from mmdiffrep.diffusion.hashes import file_sha256
from mmdiffrep.diffusion.loading import WEIGHT_SUFFIXES
from mmdiffrep.diffusion.weights import WeightFile

DTYPES = dict(fp16=torch.float16, fp32=torch.float32)

CARD = """\
# {name}

A guided-diffusion (ADM) U-Net as a diffusers `UNet2DModel`, written by mmdiffrep's
`tools/convert_adm.py`.

* Source file: `{name}`, sha256 `{sha256}`
* Weights: {parameters:,} in {dtype}
* Output: {output}
* Classes: {classes}
* Settings (arguments of guided-diffusion's `UNetModel`; attention_resolutions are downsampling
  factors):

```json
{settings}
```

Use it as `pretrained='<this folder>'` of `mmdiffrep.PixelUNet`, or in diffusers:
`UNet2DModel.from_pretrained('<this folder>', subfolder='unet')`.
Its licence is that of the source file (guided-diffusion's own models: MIT).
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('checkpoint', type=Path, help='.pt or .safetensors, a state dict')
    parser.add_argument('out', type=Path, help='folder to write')
    heads = parser.add_mutually_exclusive_group()
    heads.add_argument(
        '--head-channels', type=int, default=64, help='channels of an attention head'
    )
    heads.add_argument(
        '--heads',
        type=int,
        default=None,
        help='heads of every attention, instead of their channels',
    )
    parser.add_argument(
        '--new-attention-order', action='store_true',
        help='q, k and v are stacked before they are split into heads (use_new_attention_order)',
    )  # fmt: skip
    parser.add_argument(
        '--image-size', type=int, default=256, help='side of the training images in pixels'
    )
    parser.add_argument('--noise-schedule', choices=('linear', 'cosine'), default='linear')
    parser.add_argument('--diffusion-steps', type=int, default=1000)
    parser.add_argument('--dtype', choices=sorted(DTYPES), default='fp32')
    parser.add_argument('--overwrite', action='store_true', help='replace an earlier conversion')
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> Path:
    """Write ``args.out``; an interrupted run leaves nothing under that name."""
    if not args.checkpoint.is_file():
        raise FileNotFoundError(f'{args.checkpoint}: no such file')
    if args.checkpoint.suffix not in WEIGHT_SUFFIXES:
        raise ValueError(
            f'{args.checkpoint}: expected a file that ends in one of {WEIGHT_SUFFIXES}'
        )
    if args.out.exists():
        if not args.overwrite:
            raise ValueError(f'{args.out} exists; choose another folder or give --overwrite')
        if not (args.out / 'model_index.json').is_file():
            raise ValueError(
                f'{args.out} is no earlier conversion (it has no model_index.json); not replaced'
            )
    weights = WeightFile([args.checkpoint])
    if not adm.is_adm_state_dict(weights.keys()):
        raise ValueError(
            f'{args.checkpoint} is no guided-diffusion U-Net: expected parameters under '
            'time_embed, input_blocks, '
            f'middle_block and output_blocks, found {sorted(weights.keys())[:3]} …'
        )
    settings = adm.infer_adm_config(
        weights.shapes, args.head_channels, args.heads, args.new_attention_order, args.image_size
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{args.out.name}.', dir=args.out.parent))
    try:
        temporary.chmod(0o755)
        _write(temporary, weights, settings, args)
        if args.out.exists():
            shutil.rmtree(args.out)
        temporary.rename(args.out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return args.out


def _write(
    folder: Path, weights: WeightFile, settings: Mapping[str, Any], args: argparse.Namespace
) -> None:
    import diffusers

    state = {}
    read, names = adm.adm_reader(weights.read, weights.shapes, settings)
    for name in sorted(names):
        state[name] = read(name).to(DTYPES[args.dtype]).contiguous()
    with torch.device('meta'):
        unet = diffusers.UNet2DModel.from_config(adm.adm_to_diffusers_config(settings))
    unet.save_config(folder / 'unet')
    save_file(state, folder / 'unet' / 'diffusion_pytorch_model.safetensors', {'format': 'pt'})
    scheduler = adm.adm_scheduler_config(settings, args.noise_schedule, args.diffusion_steps)
    diffusers.DDPMScheduler.from_config(scheduler).save_config(folder / 'scheduler')
    index = dict(
        _class_name='DDPMPipeline',
        _diffusers_version=diffusers.__version__,
        scheduler=['diffusers', 'DDPMScheduler'],
        unet=['diffusers', 'UNet2DModel'],
    )
    (folder / 'model_index.json').write_text(json.dumps(index, indent=2) + '\n', encoding='utf-8')
    learned = scheduler['variance_type'] == 'learned_range'
    card = CARD.format(
        name=args.checkpoint.name,
        sha256=file_sha256(args.checkpoint),
        parameters=sum(value.numel() for value in state.values()),
        dtype=args.dtype,
        output='epsilon, then the learned variance' if learned else 'epsilon',
        classes=settings['num_classes'] or 'none (unconditional)',
        settings=json.dumps(settings, indent=2),
    )
    (folder / 'README.md').write_text(card, encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
    try:
        out = convert(parse_args(argv))
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{out}: written. Use it as pretrained={str(out)!r}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
