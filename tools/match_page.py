#!/usr/bin/env python
"""A page in the browser: click a point in one image, see it found in the other.

pip install 'mmdiffrep[page]'
python tools/match_page.py                       # http://127.0.0.1:7860; load two images there
python tools/match_page.py a.jpg b.jpg --config dift_sd21_spair-71k-768x768 --category bird
"""

from __future__ import annotations

import argparse

import mmdiffrep  # noqa: F401
from mmdiffrep.apis import Matcher
from mmdiffrep.apis.match_page import MatchPage, gradio, pictures
from mmdiffrep.apis.matcher import CONFIG
from mmdiffrep.utils import cli


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', nargs='*', help='two images to begin with')
    parser.add_argument('--config', default=CONFIG, help=f'config file or name; default {CONFIG}')
    parser.add_argument('--weights', help="of the config's neck, if it has one")
    parser.add_argument('--category', help='what the images show, for configs with a prompt')
    parser.add_argument('--port', type=int, default=7860)
    parser.add_argument('--host', default='127.0.0.1', help='0.0.0.0: for other machines, too; default: for this one only')
    parser.add_argument('--device', help='default: the accelerator where there is one')
    return parser


def serve(args: argparse.Namespace) -> None:
    gradio()
    if len(args.images) not in (0, 2):
        raise ValueError(f'{len(args.images)} images were given: give two, or none and load them in the page')
    shown = pictures(args.images)
    page = MatchPage(Matcher(args.config, args.weights, args.device), args.category).blocks(*shown)
    page.launch(server_name=args.host, server_port=args.port, share=False)


def main(argv: list[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    return cli.reporting(lambda: serve(args))


if __name__ == '__main__':
    raise SystemExit(main())
