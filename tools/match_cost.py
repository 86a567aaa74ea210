#!/usr/bin/env python
"""What matching a pair costs with Stable Diffusion 2.1 at full size: this project's way beside the published one, same answers.

    python tools/match_cost.py                      # 256×256, eight draws of noise, random weights; nothing is fetched
    python tools/match_cost.py --size 768 --device cuda

Published (DIFT): eight copies of each image go through the autoencoder and the network, both maps are resized to the images, and compared there. Both
ways get the same weights, latents and noise, each in a process of its own, and take turns: A B A B. Seconds on the CPU are processor time on one
thread, so that other work hardly counts; memory is the process's peak, with and without what it had when the model was built.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mmdiffrep  # noqa: F401
from mmdiffrep.diffusion.condition import Condition
from mmdiffrep.diffusion.extraction import FeatureExtractor
from mmdiffrep.diffusion.noise import LATENT_STREAM, NoisePolicy
from mmdiffrep.diffusion.stable_diffusion import StableDiffusion
from mmdiffrep.matching import match_points
from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.memory import forget_peak, peak_of_process
from mmdiffrep.utils.taps import format_table

WAYS = ('ours', 'published')
GIB = 2**30


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='sd21', help='architecture, or a diffusers folder; default sd21')
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--draws', type=int, default=8)
    parser.add_argument('--looks', type=int, default=8, help='ours: noised images in the network at once')
    parser.add_argument('--plain-layout', action='store_true', help="ours: without channels_last (a switch of DiffusionBackbone's)")
    parser.add_argument('--points', type=int, default=20)
    parser.add_argument('--tap', default='up_blocks.1')
    parser.add_argument('--timestep', type=int, default=261)
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--one', choices=WAYS, help=argparse.SUPPRESS)  # the process that measures
    parser.add_argument('--answers', help=argparse.SUPPRESS)
    return parser


class Found(Exception):
    """The block's output; nothing behind it is run."""


def published_features(net: StableDiffusion, image: Tensor, args: argparse.Namespace, tokens: Tensor) -> Tensor:
    """Copies through autoencoder and network, as DIFT's code does, on diffusers' own modules: (C, h, w)."""
    policy = NoisePolicy('shared', 0, args.draws)
    copies = image.repeat(args.draws, 1, 1, 1)
    posterior = net.vae.encode(copies).latent_dist
    shape = (1, *posterior.mean.shape[1:])
    draw = [torch.cat([policy.draw(shape, k + stream) for k in range(args.draws)]) for stream in (LATENT_STREAM, 0)]
    x0 = (posterior.mean + posterior.std * draw[0].to(image)) * net.vae.config.scaling_factor
    t = torch.full((args.draws,), args.timestep, device=image.device)
    x_t = net.schedule.add_noise(x0, draw[1].to(image), t)

    def stop(_module: Any, _inputs: Any, output: Tensor) -> None:
        raise Found(output)

    hook = net.unet.get_submodule(args.tap).register_forward_hook(stop)
    try:
        net.unet(x_t, t, encoder_hidden_states=tokens.expand(args.draws, -1, -1))
    except Found as found:
        return found.args[0].mean(0)
    finally:
        hook.remove()
    raise ValueError(f'--tap {args.tap} is not run')


def published_match(source: Tensor, target: Tensor, points: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Both maps resized to the images, compared there."""
    a, b = (F.interpolate(m[None], size, mode='bilinear')[0] for m in (source, target))
    x, y = points.long().t()
    vectors = F.normalize(a[:, y, x], dim=0)
    scores = vectors.t() @ F.normalize(b.flatten(1), dim=0)
    best = scores.max(1)
    return torch.stack([best.indices % size[1], best.indices // size[1]], 1), best.values


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    on_cpu = torch.device(args.device).type == 'cpu'
    ours = args.one == 'ours'
    kept = [args.tap] if ours else None
    net = StableDiffusion(config=args.model, random_seed=0, latent='sample', keep_taps=kept)
    if not ours:
        net.vae.decoder = None  # as DIFT's code does
    net.to(args.device, memory_format=torch.channels_last if ours and not args.plain_layout else torch.preserve_format).eval()
    g = torch.Generator().manual_seed(0)
    # two pictures with structure: drawn coarsely, the second is the first one turned over
    image = F.interpolate(torch.rand(1, 3, 16, 16, generator=g) * 2 - 1, (args.size, args.size), mode='bicubic').clamp(-1, 1)
    images = [image.to(args.device), image.flip(-1).to(args.device)]
    points = (torch.rand(args.points, 2, generator=g) * (args.size - 1)).round()
    tokens = torch.randn(1, 77, net.unet.config.cross_attention_dim, generator=g).to(args.device)
    extractor = FeatureExtractor(net, [args.tap], args.timestep, NoisePolicy('shared', 0, args.draws), args.looks)
    size = (args.size, args.size)
    clock = time.process_time if on_cpu else time.perf_counter

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        begin = clock()
        found = call()
        if not on_cpu:
            torch.cuda.synchronize()
        return found, clock() - begin

    with torch.no_grad():
        if not on_cpu:  # the first call of a device sets it up
            extractor(images[0], Condition(tokens=tokens))
            torch.cuda.reset_peak_memory_stats()
        forget_peak()
        before = peak_of_process() if on_cpu else torch.cuda.memory_allocated()
        if ours:
            maps, looked = timed(lambda: [extractor(x, Condition(tokens=tokens))[0][0] for x in images])
            found, matched = timed(lambda: match_points(maps[0], maps[1], points, size, size))
            places, scores = found.points, found.scores
        else:
            maps, looked = timed(lambda: [published_features(net, x, args, tokens) for x in images])
            (places, scores), matched = timed(lambda: published_match(maps[0], maps[1], points, size))
    peak = peak_of_process() if on_cpu else torch.cuda.max_memory_allocated()
    torch.save(dict(places=places.cpu().float(), scores=scores.cpu().float(), maps=[m.cpu() for m in maps]), args.answers)
    return dict(features=looked, matching=matched, peak=peak, beside=peak - before)


def compare(args: argparse.Namespace) -> None:
    if min(args.size, args.draws, args.looks, args.points, args.rounds) < 1:
        raise ValueError('--size, --draws, --looks, --points and --rounds must be at least 1')
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        files = {way: str(Path(folder, way)) for way in WAYS}
        passed = sys.argv[1:]
        for number in range(args.rounds):
            for way in WAYS:
                done = subprocess.run(
                    [sys.executable, __file__, *passed, '--one', way, '--answers', files[way]], capture_output=True, text=True
                )
                if done.returncode:
                    raise ValueError(f'{way}: {done.stderr.strip().splitlines()[-1].removeprefix("error: ")}')
                measured[way].append(json.loads(done.stdout.splitlines()[-1]))
                print(f'round {number + 1}/{args.rounds} {way}: {sum(measured[way][-1][k] for k in ("features", "matching")):.1f} s', file=sys.stderr)
        answers = {way: torch.load(file, weights_only=True) for way, file in files.items()}
    rows, middle = [], {}
    for way in WAYS:
        values = {key: [m[key] for m in measured[way]] for key in measured[way][0]}
        middle[way] = {key: statistics.median(v) for key, v in values.items()}
        spread = max(f + m for f, m in zip(values['features'], values['matching'])) - min(f + m for f, m in zip(values['features'], values['matching']))
        m = middle[way]
        rows.append([
            way, f'{m["features"]:.2f}', f'{m["matching"]:.3f}', f'{m["features"] + m["matching"]:.2f}', f'{spread:.2f}',
            f'{m["peak"] / GIB:.2f}', f'{m["beside"] / GIB:.2f}',
        ])  # fmt: skip
    print(f'{args.model}, {args.size}×{args.size}, {args.draws} draws, {args.points} points, {args.device}, torch {torch.__version__}')
    print(format_table(['way', 'features s', 'matching s', 'pair s', 'spread s', 'peak GiB', 'beside the model GiB'], rows))
    ours, theirs = (middle[way] for way in WAYS)
    total = [m['features'] + m['matching'] for m in (ours, theirs)]
    print(
        f'a pair {total[1] / total[0]:.2f}× as fast, its features {theirs["features"] / ours["features"]:.2f}×, matching after them '
        f'{theirs["matching"] / ours["matching"]:.1f}×; memory beside the model {ours["beside"] / theirs["beside"]:.2f}, in all {ours["peak"] / theirs["peak"]:.2f}'
    )
    a, b = answers['ours'], answers['published']
    worst = max(float((x - y).abs().max() / y.abs().max()) for x, y in zip(a['maps'], b['maps']))
    same = int((a['places'] == b['places']).all(1).sum())
    print(f'features differ by at most {worst:.1e} of their largest; {same} of {args.points} points in the same pixel, scores within {float((a["scores"] - b["scores"]).abs().max()):.1e}')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: print(json.dumps(measure(args))) if args.one else compare(args))


if __name__ == '__main__':
    raise SystemExit(main())
