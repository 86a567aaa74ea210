"""DAVIS 2017: videos with the objects of every frame."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS
from mmdiffrep.structures import VideoSample


@DATASETS.register_module()
class DavisDataset(Dataset):
    """DAVIS 2017 (Pont-Tuset et al. 2017) as it is unpacked: ``JPEGImages/480p/VIDEO/*.jpg``, ``Annotations/480p/VIDEO/*.png``,
    ``ImageSets/2017/val.txt``.

    An item is a video: ``dict(inputs=dict(first_mask: (H, W) uint8), data_samples=VideoSample)``; the frames that the sample names are
    read one at a time by who follows the objects.

    Args:
        data_root: its folder (``DAVIS``).
        split: ``'val'``, ``'train'``, or what ``ImageSets/2017`` has.
        resolution: ``'480p'`` or ``'Full-Resolution'``.
        videos: only these.

    Raises:
        FileNotFoundError: the list, a video, or its masks.
        ValueError: frames and masks of different number.
    """

    def __init__(
        self, data_root: str | os.PathLike[str], split: str = 'val', resolution: str = '480p', videos: Sequence[str] | None = None
    ) -> None:
        self.root = Path(data_root)
        listed = self.root / 'ImageSets' / '2017' / f'{split}.txt'
        if not listed.is_file():
            there = sorted(p.stem for p in listed.parent.glob('*.txt')) if listed.parent.is_dir() else []
            raise FileNotFoundError(
                f'{listed} is not there (splits found: {there}): unpack DAVIS-2017-trainval-480p.zip and give its folder DAVIS'
            )
        names = [name for name in listed.read_text().split() if videos is None or name in videos]
        if not names:
            raise ValueError(f'{listed} lists none of the videos {list(videos or [])}')
        self.videos = []
        for name in names:
            frames = sorted((self.root / 'JPEGImages' / resolution / name).glob('*.jpg'))
            masks = sorted((self.root / 'Annotations' / resolution / name).glob('*.png'))
            if not frames or not masks:
                raise FileNotFoundError(f'video {name!r} has {len(frames)} frames and {len(masks)} masks at {resolution} in {self.root}')
            if len(frames) != len(masks):
                raise ValueError(f'video {name!r} has {len(frames)} frames and {len(masks)} masks: unpack the archive again')
            self.videos.append((name, frames, masks))
        self.metainfo: dict[str, Any] = dict(videos=tuple(names))

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name, frames, masks = self.videos[index]
        sample = VideoSample(metainfo=dict(video=name, frames=[str(p) for p in frames], masks=[str(p) for p in masks]))
        return dict(inputs=dict(first_mask=read_mask(masks[0])), data_samples=sample)


def read_mask(path: str | Path) -> np.ndarray:
    """Object numbers (H, W) uint8 of an indexed PNG; 255 is void.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no indexed or grey picture.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'{path} is not there')
    with Image.open(path) as picture:
        if picture.mode not in ('P', 'L'):
            raise ValueError(f'{path} is a picture of mode {picture.mode}; expected object numbers (P or L)')
        return np.array(picture)
