#!/usr/bin/env python
"""Find points of one photograph in another, by a diffusion network's features: a picture with lines, heat maps, a table.

python tools/match.py a.jpg b.jpg --points 120,85 200,90 --out matched.png
python tools/match.py a.jpg b.jpg --config dift_sd21_spair-768x768 --category bird --points 120,85
python tools/match.py a.jpg b.jpg --homography
python tools/match.py a.jpg b.jpg --flow
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import mmdiffrep  # noqa: F401
from mmdiffrep.apis import Matcher
from mmdiffrep.apis.matcher import CONFIG
from mmdiffrep.datasets.images import read_image
from mmdiffrep.matching.homography import METHODS
from mmdiffrep.matching.keypoints import DETECTORS, detect
from mmdiffrep.utils import cli
from mmdiffrep.utils.taps import format_table
from mmdiffrep.visualization import contact_sheet, write_picture
from mmdiffrep.visualization.matches import draw_flow, draw_heat, draw_matches, pair_colours


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source')
    parser.add_argument('target')
    parser.add_argument('--points', nargs='+', metavar='X,Y', help='pixels of the source; default: a grid of 16')
    parser.add_argument('--config', default=CONFIG, help=f'config file or name; default {CONFIG}')
    parser.add_argument('--weights', help="of the config's neck, if it has one")
    parser.add_argument('--category', help='what the images show, for configs with a prompt')
    parser.add_argument('--homography', action='store_true', help='match keypoints and find the homography instead')
    parser.add_argument('--flow', action='store_true', help='carry every pixel of the target to where the source has its like')
    parser.add_argument('--method', choices=list(METHODS), default='ransac', help='of the homography')
    parser.add_argument('--detector', choices=DETECTORS, default='sift', help='of its keypoints')
    parser.add_argument('--heat', type=int, default=4, metavar='N', help='heat maps of the first N points; default 4')
    parser.add_argument('--side', type=int, default=512, help="of the images' longer sides in the picture; default 512")
    parser.add_argument('--out', default='work_dirs/match.png', metavar='PNG')
    parser.add_argument('--device', help='default: the accelerator where there is one')
    return parser


def read_points(given: list[str] | None, image: np.ndarray) -> torch.Tensor:
    """Raises: ValueError for what is no pair of numbers."""
    if given is None:
        return detect(image, 'grid', 16)
    points = []
    for text in given:
        try:
            x, y = map(float, text.split(','))
        except ValueError:
            raise ValueError(f'--points {text}: give x,y in pixels of the source, e.g. --points 120,85 200,90') from None
        points.append([x, y])
    return torch.tensor(points)


def match(args: argparse.Namespace) -> None:
    source, target = (np.ascontiguousarray(read_image(path)[..., ::-1]) for path in (args.source, args.target))
    points = read_points(args.points, source)
    matcher = Matcher(args.config, args.weights, args.device)
    if args.homography:
        matrix, found, agree = matcher.homography(source, target, args.method, detector=args.detector)
        print(f'{len(found.scores)} keypoints are each other\'s nearest, {int(agree.sum())} agree on\n{np.array2string(matrix, precision=5, suppress_small=True)}')
        shown = torch.from_numpy(agree)
        picture = draw_matches(source, target, found.source[shown].tolist(), found.target[shown].tolist(), side=args.side)
        print(write_picture(args.out, picture))
        return
    if args.flow:
        flow, scores = matcher.flow(source, target, args.category)
        print(f'pixels move by {flow.norm(dim=0).median():.1f} in the median; {matcher.model.metric} {scores.median():.3f}')
        print(write_picture(args.out, draw_flow(source, target, flow.numpy(), args.side)))
        return
    found = matcher.match(source, target, points, args.category)
    rows = [
        [f'{x:g}, {y:g}', f'{u:.1f}, {v:.1f}', f'{score:.3f}']
        for (x, y), (u, v), score in zip(points.tolist(), found.points.tolist(), found.scores.tolist())
    ]
    print(format_table(['source x, y', 'target x, y', 'score'], rows))
    small, first = args.side // 2, points.tolist()[: max(args.heat, 0)]
    sheets = {'found': draw_matches(source, target, points.tolist(), found.points.tolist(), side=args.side)}
    heats = [
        draw_heat(target, matcher.scores(source, target, point, args.category).numpy(), place, small)
        for point, place in zip(first, found.points.tolist())
    ]
    if heats:
        sheets['how alike'] = contact_sheet([heats], [f'{x:g}, {y:g}' for x, y in first], text_size=9)
    maps = [matcher.features(image, args.category) for image in (source, target)]
    sheets['features'] = pair_colours([source, target], maps, small)
    title = f'{Path(args.source).name} → {Path(args.target).name}'
    print(write_picture(args.out, contact_sheet([[sheet] for sheet in sheets.values()], None, list(sheets), title)))


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: match(args))


if __name__ == '__main__':
    raise SystemExit(main())
