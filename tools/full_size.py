#!/usr/bin/env python
"""Measure a full-size architecture with random weights: weights kept, FLOPs, seconds and memory of its features.

    python tools/full_size.py sd15 --taps up_blocks.1 --size 512
    python tools/full_size.py dit-xl-2-256 --taps transformer_blocks.13 --size 256 --loading

Random weights cost what trained ones cost. With --loading the weights are written as a diffusers folder first and read back in a
process of its own, whose peak memory shows that nothing behind the last tap is read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import mmdiffrep  # noqa: F401
from mmdiffrep.diffusion.budget import peak_bytes
from mmdiffrep.diffusion.denoiser import Denoiser
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.model_files import known_configs
from mmdiffrep.utils.comparison.flops import count_flops, weight_bytes
from mmdiffrep.utils.comparison.memory import peak_memory

TOKENS = 'tokens.safetensors'


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('network', help=f'one of {known_configs()}')
    parser.add_argument('--taps', nargs='+', required=True, help='where activations are read')
    parser.add_argument('--size', type=int, nargs='+', default=[512], help='side, or height and width, in pixels')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--timestep', type=int, default=50)
    parser.add_argument('--runs', type=int, default=3, help='timed runs; the median is printed')
    parser.add_argument('--loading', action='store_true', help='also write the weights and measure reading them')
    parser.add_argument('--read', help=argparse.SUPPRESS)  # the process that reads
    return parser


def family(network: str) -> Any:
    """The class that builds a shipped architecture."""
    from mmdiffrep.diffusion import dit, pixel_unet, stable_diffusion

    families = {'dit': dit.DiT, 'sd': stable_diffusion.StableDiffusion, 'adm': pixel_unet.PixelUNet}
    for prefix, kind in families.items():
        if network.startswith(prefix) and network in known_configs():
            return kind
    raise ValueError(f'network {network!r} is unknown; allowed: {known_configs()}')


def build(network: str, taps: list[str] | None, folder: str | None = None) -> Denoiser:
    """The architecture, cut behind its taps; with random weights unless it is read from a folder."""
    kind = family(network)
    if folder is None:
        return kind(config=network, keep_taps=taps)
    text = dict(tokens=str(Path(folder, TOKENS))) if network.startswith('sd') else {}
    return kind(pretrained=folder, keep_taps=taps, **text)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Features of the cut architecture: what they cost."""
    denoiser = build(args.network, args.taps)
    size = (args.size[0], args.size[-1])
    extract = FeatureExtractor(denoiser, args.taps, args.timestep)
    images = torch.rand(args.batch, denoiser.image_channels, *size) * 2 - 1
    weights = weight_bytes(denoiser)
    seconds: list[float] = []

    def run() -> None:
        begin = time.perf_counter()
        maps = extract(images)
        seconds.append(time.perf_counter() - begin)
        shapes.update({name: 'x'.join(map(str, x.shape)) for (_, name), x in zip(extract.order, maps)})

    shapes: dict[str, str] = {}
    with torch.no_grad():
        flops = count_flops(run)
        least = peak_bytes(lambda: extract(images))
        peak = peak_memory(run, weights)
        for _ in range(args.runs):
            run()
    return {
        'network': args.network,
        'image': f'{args.batch} x {size[0]} x {size[1]}',
        'maps': '; '.join(f'{name} {shape}' for name, shape in shapes.items()),
        'weights kept, million': f'{sum(p.numel() for p in denoiser.network.parameters()) / 1e6:.1f}',
        'TFLOP': f'{flops / 1e12:.3f}',
        'seconds, median': f'{statistics.median(seconds[2:]):.2f}',
        'peak GiB, weights included': f'{peak / 2**30:.2f}',
        'beside the weights, GiB': f'{(peak - weights) / 2**30:.3f}',
        'activations by their shapes, GiB': f'{least / 2**30:.3f}',
    }


def measure_loading(args: argparse.Namespace) -> dict[str, Any]:
    """Write the whole network, read it back cut behind the taps, in another process."""
    folder = Path(tempfile.mkdtemp(prefix='mmdiffrep-full-size-'))
    try:
        _write(build(args.network, None), folder)
        stored = sum(file.stat().st_size for file in folder.rglob('*.safetensors'))
        command = [sys.executable, __file__, args.network, '--taps', *args.taps, '--read', str(folder)]
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            raise ValueError(f'reading failed:\n{out.stderr}')
        read = json.loads(out.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)
    return {
        'stored GiB': f'{stored / 2**30:.2f}',
        'kept GiB': f'{read["kept"] / 2**30:.2f}',
        'peak of loading, GiB': f'{read["peak"] / 2**30:.2f}',
        'seconds of loading': f'{read["seconds"]:.1f}',
    }


def _write(denoiser: Denoiser, folder: Path) -> None:
    """A diffusers folder, weights in fp16 as they are published."""
    from diffusers import DDPMScheduler

    from mmdiffrep.diffusion.text import save_tokens

    network = denoiser.network
    parts = [(network, 'transformer' if hasattr(network, 'transformer_blocks') else 'unet')]
    if hasattr(network, 'vae'):
        vae = network.vae
        del network.vae
        parts.append((vae, 'vae'))
    for module, name in parts:
        module.half().save_pretrained(folder / name)
    DDPMScheduler.from_config(denoiser.schedule.to_config()).save_pretrained(folder / 'scheduler')
    if getattr(denoiser, 'tokens', None) is not None:
        save_tokens(denoiser.tokens, folder / TOKENS)


def read(args: argparse.Namespace) -> dict[str, Any]:
    """Load and say what it took: the peak beyond what libraries take, and what was kept."""
    found: list[Denoiser] = []
    build(args.network, args.taps, args.read)  # imports and caches of files are not the network's
    begin = time.perf_counter()
    peak = peak_memory(lambda: found.append(build(args.network, args.taps, args.read)), 0)
    return dict(peak=peak, kept=weight_bytes(found[0]), seconds=time.perf_counter() - begin)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        family(args.network)
        if args.read:
            print(json.dumps(read(args)))
            return 0
        row = measure(args)
        if args.loading:
            row.update(measure_loading(args))
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    width = max(map(len, row))
    print('\n'.join(f'{key.ljust(width)}  {value}' for key, value in row.items()))
    print(f'device: {torch.get_num_threads()} CPU threads, torch {torch.__version__}, fp32')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
