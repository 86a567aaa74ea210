#!/usr/bin/env python
"""Label images with a trained ensemble and make a data set of those it is sure of (DatasetDDPM, Baranchuk et al. 2022).

    python tools/make_labels.py CONFIG CHECKPOINT photos/ --out work_dirs/labels
    python tools/make_labels.py CONFIG CHECKPOINT --sample 1000 --from mmdiffrep/toy-unet --out work_dirs/labels

Images are ranked by their uncertainty (OUT/ranking.csv) and the most certain 90 % become OUT/dataset/{images,labels}/*.png, which
mmdiffrep.SegFolder reads; the lines that make a config of mmseg train on it are printed. What was done before is not done again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.utils import track_iter_progress

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.apis.building import chosen_device
from mmdiffrep.apis.generative import draw_images, load_generative
from mmdiffrep.apis.inputs import gather
from mmdiffrep.apis.pseudo_labels import PseudoLabels, kept_of, names_of, snippet
from mmdiffrep.apis.uncertain_segmenter import UncertainSegmenter
from mmdiffrep.utils import cli


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file or name')
    parser.add_argument(
        'checkpoint', help='what its training wrote: WORK_DIR or WORK_DIR/iter_N.pth'
    )
    parser.add_argument('images', nargs='*', metavar='IMAGE', help='files, or folders with images')
    parser.add_argument('--out', required=True, metavar='FOLDER')
    parser.add_argument(
        '--keep',
        type=float,
        default=0.9,
        metavar='SHARE',
        help='of the most certain images; default 0.9',
    )
    parser.add_argument(
        '--drop-certain', type=int, default=0, metavar='N',
        help='leave out the N most certain ones, and keep N more of the uncertain (the paper\'s code: 30); default 0',
    )  # fmt: skip
    sampling = parser.add_argument_group('instead of images')
    sampling.add_argument(
        '--sample', type=int, metavar='N', help='draw N images from a diffusion model'
    )
    sampling.add_argument(
        '--from',
        dest='source',
        metavar='MODEL',
        help='short name, diffusers folder, hub id, or a config of pre-training',
    )
    sampling.add_argument('--from-checkpoint', metavar='FILE', help='the .pth of such a config')
    sampling.add_argument('--steps', type=int, default=50)
    sampling.add_argument(
        '--sampler', help="ddim (default), ddpm (the paper's), dpm++, euler, pndm, unipc; EDM: heun"
    )
    sampling.add_argument('--size', type=int, metavar='PIXELS', help="default: the network's own")
    sampling.add_argument('--seed', type=int, default=0)
    sampling.add_argument(
        '--batch-size', type=int, default=8, help='images drawn at a time; default 8'
    )
    parser.add_argument('--device', help='default: the accelerator where there is one')
    return parser


def checked(args: argparse.Namespace) -> None:
    """Mistakes first: building a model takes seconds. Raises: ValueError, FileNotFoundError."""
    kept_of(['one'], args.keep)
    if bool(args.images) == bool(args.sample):
        raise ValueError('give either images or --sample N with --from MODEL')
    if args.sample and not args.source:
        raise ValueError(
            '--sample needs --from MODEL: what the images are drawn from, e.g. mmdiffrep/toy-unet'
        )
    if args.source and not args.sample:
        raise ValueError(f'--from {args.source} was given without --sample N')
    if args.images:
        kept_of([str(image) for image in gather(args.images)[0]], args.keep, args.drop_certain)
    chosen_device(args.device)


def sampled(args: argparse.Namespace) -> list[Path]:
    model = load_generative(args.source, args.from_checkpoint).to(chosen_device(args.device)).eval()
    print(f'drawing {args.sample} images from {args.source}', file=sys.stderr)
    return draw_images(
        model, Path(args.out, 'sampled'), args.sample, dict(model=args.source, checkpoint=args.from_checkpoint),
        seed=args.seed, batch_size=args.batch_size, steps=args.steps, sampler=args.sampler, size=args.size,
    )  # fmt: skip


def make_labels(args: argparse.Namespace) -> None:
    checked(args)
    segmenter = UncertainSegmenter(args.config, args.checkpoint, args.device)
    labels = PseudoLabels(args.out, segmenter.made_by)
    images = names_of(sampled(args) if args.sample else gather(args.images)[0])
    todo = [item for item in images.items() if labels.uncertainty(*item) is None]
    print(f'{len(images)} images, {len(images) - len(todo)} labelled before', file=sys.stderr)
    if todo:
        for name, image in track_iter_progress(todo, file=sys.stderr):
            labels.add(name, image, *segmenter(image))
        print(file=sys.stderr)
    lines = snippet(Path(args.out, 'dataset'), segmenter.metainfo)
    ranked = labels.export(images, args.keep, args.drop_certain, card(args, segmenter, lines))
    kept = [one for one in ranked if one.kept]
    print(
        f'{len(kept)} of {len(ranked)} images are kept, with uncertainties of {kept[0].uncertainty:.3g} to {kept[-1].uncertainty:.3g} '
        f'nats (the least certain of all: {ranked[-1].uncertainty:.3g})\n{Path(args.out, "ranking.csv")}\n{Path(args.out, "dataset")}\n\n'
        f'To train on them, put this below _base_ in a config:\n\n{lines}'
    )


def card(args: argparse.Namespace, segmenter: UncertainSegmenter, lines: str) -> str:
    """The data set's README.md: where its labels come from."""
    origin = (
        f'{args.sample} images drawn from {args.source}, seed {args.seed}'
        if args.sample
        else ', '.join(args.images)
    )
    return (
        f'# Pseudo-labels\n\nNot drawn by people: predicted by `{args.config}` with `{args.checkpoint}` (digests '
        f'{segmenter.made_by["model"]}, {segmenter.made_by["weights"]}).\n\n- images: {origin}\n- kept: the most certain '
        f'{100 * args.keep:g} %, without the {args.drop_certain} most certain\n\nIn a config:\n\n```python\n{lines}```\n'
    )


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: make_labels(args))


if __name__ == '__main__':
    raise SystemExit(main())
