#!/usr/bin/env python
"""Write a CLIP's text tower as text_encoder/ and tokenizer/, which Stable Diffusion folders have."""

from __future__ import annotations

import argparse
import sys

from mmdiffrep.openvocab import save_text_encoder


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'clip',
        help="a short name, a folder in open_clip's format, hf-hub:org/name, or an architecture",
    )
    parser.add_argument('out', help='folder to write')
    parser.add_argument(
        '--pretrained', help="an architecture's weights: open_clip's tag, or a file"
    )
    args = parser.parse_args(argv)
    try:
        save_text_encoder(args.clip, args.out, args.pretrained)
    except (ValueError, FileNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(f'{args.out}: text_encoder/ and tokenizer/ of {args.clip}')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
