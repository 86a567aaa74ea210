"""``python -m mmdiffrep``: the versions at work here, and what does not fit together."""

from __future__ import annotations

import platform
import sys

from . import __version__, compat

PACKAGES = (
    'torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmdet', 'diffusers', 'transformers', 'open_clip', 'numpy', 'cv2'
)  # fmt: skip


def main() -> int:
    print(f'mmdiffrep {__version__}, Python {platform.python_version()}')
    print(', '.join(f'{name} {compat.package_version(name) or "-"}' for name in PACKAGES))
    print(
        f"mmcv's ops: {'stand-in (torch, torchvision)' if compat.uses_stand_in() else 'compiled'}"
    )
    try:
        compat.check_environment()
    except RuntimeError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print('all fits together')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
