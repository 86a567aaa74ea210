#!/usr/bin/env python
"""Segment photographs into things and stuff named in any words: overlays, JSON, COCO-panoptic files, and a table.

python tools/segment.py photo.jpg --vocab "cat, kitten; grass (stuff); traffic light" --out found
"""

from __future__ import annotations

import argparse

import mmdiffrep  # noqa: F401  before the toolkits, so that they work with mmcv-lite
from mmdiffrep.apis import OpenVocabInferencer, ResultFolder, SegmentationResult
from mmdiffrep.apis.inputs import gather, vocabularies
from mmdiffrep.apis.trained import read_config
from mmdiffrep.openvocab.prompts import templates
from mmdiffrep.utils import cli
from mmdiffrep.utils.taps import format_table

# the toy model that comes with the package
CONFIG = 'odise_toy-unet_1200i_toyscenes-64x64'
WEIGHTS = 'mmdiffrep/toy-odise'


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='files, or folders with images')
    parser.add_argument(
        '--vocab',
        help='"cat, kitten; grass (stuff)": classes between ";", synonyms between ","; a .txt or .json file; or a ready name such as '
        'coco-panoptic. Default: what the model was trained on',
    )
    parser.add_argument('--config', help=f'config file or name; default {CONFIG}')
    parser.add_argument(
        '--weights',
        help=f'.pth, .safetensors, folder or short name; default, without --config: {WEIGHTS}',
    )
    parser.add_argument(
        '--out',
        default='work_dirs/segment',
        metavar='DIR',
        help='folder to write; default work_dirs/segment',
    )
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument(
        '--templates',
        metavar='NAME',
        help="prompts that CLIP's look at the masks puts the names into: none, single, vild, imagenet",
    )
    parser.add_argument('--device', help='default: the accelerator where there is one')
    return parser


def load(args: argparse.Namespace) -> OpenVocabInferencer:
    """Raises: FileNotFoundError, ValueError with the cure."""
    if args.config is not None and args.weights is None:
        raise ValueError(
            f'--config {args.config} was given without --weights: give what its training wrote, WORK_DIR or WORK_DIR/iter_N.pth'
        )
    cfg = read_config(args.config or CONFIG)
    if args.templates is not None:
        templates(args.templates)  # a wrong one is named before anything is built
        if cfg.get('model', {}).get('clip') is None:
            raise ValueError(
                '--templates is for the CLIP that looks at the masks, and the config has none (model.clip)'
            )
        cfg.model.clip.templates = args.templates
    return OpenVocabInferencer(cfg, args.weights or WEIGHTS, args.device)


def table(result: SegmentationResult) -> str:
    """The segments, the largest first."""
    head = ['name', 'kind', 'score', 'area %', 'seen']
    rows = [
        [
            s['name'],
            'thing' if s['isthing'] else 'stuff',
            f'{s["score"]:.2f}',
            f'{100 * s["area"] / result.ids.size:.1f}',
            'yes' if s['seen'] else 'no',
        ]
        for s in sorted(result.segments, key=lambda s: -s['area'])
    ]
    return format_table(head, rows, left=(0, 1)) if rows else 'no segments'


def segment(args: argparse.Namespace) -> None:
    # mistakes first: building a model takes seconds
    gather(args.images)
    vocabularies(args.vocab, 1)
    out = ResultFolder(args.out)
    inferencer = load(args)
    blocks = []
    for result in inferencer.iterate(args.images, args.vocab, args.batch_size):
        files = out.add(result)
        height, width = result.ids.shape
        blocks.append(f'{result.path} ({width}×{height})\n{table(result)}')
        blocks.append('\n'.join(map(str, files)))
    blocks.append(str(out.finish()))
    print('\n\n'.join(blocks))


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: segment(args))


if __name__ == '__main__':
    raise SystemExit(main())
