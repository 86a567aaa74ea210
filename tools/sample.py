#!/usr/bin/env python
"""Draw images from a diffusion model: a short name, a diffusers folder, or a config with its checkpoint."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from mmengine.utils import track_iter_progress

import mmdiffrep  # noqa: F401
from mmdiffrep.apis.generative import load_generative
from mmdiffrep.engine.hooks.sample_hook import draw_rows
from mmdiffrep.utils import cli
from mmdiffrep.visualization.canvas import write_picture
from mmdiffrep.visualization.samples import sample_grid, to_pictures


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model', help='short name (mmdiffrep/toy-unet), diffusers folder, hub id, or a config file of pre-training')
    parser.add_argument('checkpoint', nargs='?', help='the .pth of a config')
    parser.add_argument('--out', default='samples.png', help='the grid; default samples.png')
    parser.add_argument('--each', metavar='FOLDER', help='also write every image by itself')
    parser.add_argument('--count', type=int, default=16, help='images, or images a prompt or class')
    parser.add_argument('--prompts', nargs='+', metavar='TEXT', help='a row of images for each')
    parser.add_argument('--class-ids', nargs='+', type=int, metavar='N', help='a row of images for each')
    parser.add_argument('--steps', type=int, default=50)
    parser.add_argument('--sampler', help='ddim (default), ddpm, dpm++, euler, pndm, unipc; EDM: heun')
    parser.add_argument('--guidance-scale', type=float, default=1.0, help='classifier-free guidance; 1 is none')
    parser.add_argument('--size', type=int, nargs='+', metavar='PIXELS', help="one side or H W; default: the network's own")
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    return parser


def draw(args: argparse.Namespace) -> None:
    if args.size and len(args.size) > 2:
        raise ValueError(f'--size {args.size} does not fit; allowed: one side, or H W')
    model = load_generative(args.model, args.checkpoint).to(args.device).eval()
    size = None if not args.size else tuple(args.size) if len(args.size) == 2 else args.size[0]
    images, titles = draw_rows(
        model, args.count, args.prompts, args.class_ids, args.seed, steps=args.steps, sampler=args.sampler,
        guidance_scale=args.guidance_scale, size=size, progress=_progress,
    )  # fmt: skip
    path = write_picture(args.out, sample_grid(images, args.count if titles else None, titles))
    print(f'\n{len(images)} images of {images.shape[2]}×{images.shape[3]}: {path}')
    if args.each:
        for i, picture in enumerate(to_pictures(images)):
            write_picture(Path(args.each, f'{i:05d}.png'), picture)
        print(f'each of them: {args.each}/')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: draw(args))


def _progress(steps):
    return track_iter_progress(list(steps), file=sys.stderr)


if __name__ == '__main__':
    raise SystemExit(main())
