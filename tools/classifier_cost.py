#!/usr/bin/env python
"""What DifFormer and DifFeed are at full size, with random weights: shapes, and a training step's memory and time.

    python tools/classifier_cost.py                                   # DifFeed on ADM-256 at 256×256, one image
    python tools/classifier_cost.py configs/difformer/difformer_adm-256_28e_imagenet-256x256.py --size 128 --batch-size 2

The config's network is built with random weights. The step runs in two processes of their own, with activation checkpointing and without; their
gradients are compared. Peak memory is the process's (on an accelerator: the device's), weights included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from safetensors.torch import load_file, save_file

import mmdiffrep  # noqa: F401
from mmdiffrep.models.classification import AttentionFusion
from mmdiffrep.registry import MODELS
from mmdiffrep.structures import ClassSample
from mmdiffrep.utils import cli
from mmdiffrep.utils.comparison.memory import peak_memory
from mmdiffrep.utils.taps import format_table

CONFIG = 'configs/diffeed/diffeed_adm-256_28e_imagenet-256x256.py'
GIB = 2**30


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', default=CONFIG, help=f'default {CONFIG}')
    parser.add_argument('--size', type=int, help="side of the images; default: the config's")
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--own', metavar='FILE', help=argparse.SUPPRESS)  # one step in this process, its gradients into FILE
    parser.add_argument('--with-cp', action='store_true', help=argparse.SUPPRESS)
    return parser


def build(args: argparse.Namespace) -> Any:
    """The config's classifier around a network with random weights."""
    cfg = Config.fromfile(cli.existing_config(args.config))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    model = cfg.model
    model.backbone.with_cp = args.with_cp
    denoiser = model.backbone.denoiser
    if str(denoiser.get('pretrained', '')).endswith('256x256_diffusion_uncond.pt'):
        model.backbone.denoiser = dict(type=denoiser.type, config='adm-256', random_seed=0)
    else:
        denoiser.random_seed = 0
    if args.size and 'image_size' in model.head:
        model.head.image_size = args.size
    args.size = args.size or cfg.image_size
    torch.manual_seed(0)
    return MODELS.build(model).to(args.device).train()


def shapes(model: Any) -> list[str]:
    """What the paper states of its tensors."""
    backbone, head = model.backbone, model.head
    lines = []
    if hasattr(backbone, 'nets'):
        pairs = zip(backbone.feedback.items(), backbone.nets)
        lines += [f'feedback {s} -> {t}: {net[0].in_channels} -> {net[0].out_channels} channels' for (s, t), net in pairs]
    if isinstance(head, AttentionFusion):
        lines.append(
            f'attention over {" + ".join(map(str, head.tokens))} tokens and a class token, {head.num_timesteps} timestep(s), linear layer '
            f'{head.fc.in_features} -> {head.fc.out_features}'
        )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in backbone.denoiser.network.parameters())
    return [*lines, f'{trained / 1e6:.1f} M trained parameters, {frozen / 1e6:.1f} M frozen']


def step(args: argparse.Namespace) -> None:
    """One training step in this process."""
    model = build(args)
    samples = [ClassSample() for _ in range(args.batch_size)]
    for i, sample in enumerate(samples):
        sample.gt_label = i % model.head.num_classes
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (args.batch_size, 3, args.size, args.size), generator=g).float().to(args.device)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.backbone.denoiser.network.parameters()])
    begin = time.perf_counter()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(images, samples, mode='loss')['loss'].backward()

    memory = peak_memory(run, weights)
    seconds = time.perf_counter() - begin
    grads = {n: p.grad.detach().cpu().contiguous() for n, p in model.named_parameters() if p.grad is not None}
    save_file(grads, args.own)
    leaked = sum(p.grad is not None for p in model.backbone.denoiser.network.parameters())
    print(json.dumps(dict(memory=memory, seconds=seconds, leaked=leaked, shapes=shapes(model))))


def compare(args: argparse.Namespace) -> None:
    cli.existing_config(args.config)
    if min(args.batch_size, args.size or 1) < 1:
        raise ValueError(f'--batch-size {args.batch_size} --size {args.size} do not fit; allowed: at least 1')
    rows, grads, said = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in (('all activations kept', []), ('checkpointing', ['--with-cp'])):
            file = str(Path(folder) / 'gradients.safetensors')
            command = [sys.executable, __file__, args.config, '--own', file, *flags, '--batch-size', str(args.batch_size)]
            command += ['--device', args.device, *(['--size', str(args.size)] if args.size else [])]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr[-2000:]}')
            found = json.loads(done.stdout.strip().splitlines()[-1])
            rows.append([name, f'{found["memory"] / GIB:.2f}', f'{found["seconds"]:.1f}'])
            grads.append(load_file(file))
            said.append(found)
    print('\n'.join(said[0]['shapes']))
    print(format_table([f'a training step, batch {args.batch_size}', 'peak memory, GiB', 'seconds'], rows))
    largest = max(g.abs().max().item() for g in grads[0].values())
    apart = max((a - grads[1][n]).abs().max().item() for n, a in grads[0].items())
    print(f'gradients of {len(grads[0])} tensors: largest {largest:.3g}, largest difference between the two {apart:.3g}')
    print(f'gradients on the frozen network: {said[0]["leaked"] + said[1]["leaked"]}')


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: step(args) if args.own else compare(args))


if __name__ == '__main__':
    raise SystemExit(main())
