"""HPatches: photographs of planar scenes with the homographies between them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from mmdiffrep.registry import DATASETS
from mmdiffrep.structures import PairSample

from .images import read_image

KINDS = dict(illumination='i_', viewpoint='v_')
# those with photographs of more than 1600 × 1200 pixels, which D2-Net (Dusmanu et al., CVPR 2019) and those after it leave out
LARGE = ('i_contruction', 'i_crownnight', 'i_dc', 'i_pencils', 'i_whitebuilding', 'v_artisans', 'v_astronautis', 'v_talent')  # fmt: skip


@DATASETS.register_module()
class HPatchesDataset(Dataset):
    """HPatches (Balntas et al., CVPR 2017) as it is unpacked: ``{i_,v_}NAME/{1…6}.ppm``, ``H_1_{2…6}``.

    An item is the first image of a sequence and one of the others: ``dict(inputs=dict(source, target: (3, H, W) uint8 BGR),
    data_samples=PairSample)`` with metainfo ``homography`` (3, 3) and ``kind``.

    Args:
        data_root: its folder (``hpatches-sequences-release``).
        kinds: ``'illumination'``, ``'viewpoint'`` or both.
        leave_out: sequences; by default the eight that are usually left out as too large.
        keypoints: folder with keypoints of your own, ``SEQUENCE/{1…6}.npy`` of shape (n, 2 or more), x and y first: those of
            SuperPoint, for instance; None: the model detects some.
        resize: (height, width) that images, homographies and keypoints are brought to; None: as they are.
        max_pairs: the first so many.

    Raises:
        FileNotFoundError: no sequences, or a file of one.
        ValueError: a homography or keypoints that cannot be read.
    """

    def __init__(
        self,
        data_root: str | os.PathLike[str],
        kinds: tuple[str, ...] = ('illumination', 'viewpoint'),
        leave_out: tuple[str, ...] = LARGE,
        keypoints: str | os.PathLike[str] | None = None,
        resize: tuple[int, int] | None = None,
        max_pairs: int | None = None,
    ) -> None:
        self.root, self.resize = Path(data_root), resize
        self.keypoints = None if keypoints is None else Path(keypoints)
        unknown = sorted(set(kinds) - set(KINDS))
        if unknown or not kinds:
            raise ValueError(f'kinds={list(kinds)} do not fit; allowed: {list(KINDS)}')
        starts = tuple(KINDS[kind] for kind in kinds)
        folders = sorted(p for p in self.root.glob('[iv]_*') if p.is_dir() and p.name.startswith(starts) and p.name not in leave_out)
        if not folders:
            raise FileNotFoundError(
                f'{self.root} has no folders {" or ".join(s + "*" for s in starts)}: unpack hpatches-sequences-release.tar.gz and give its folder'
            )
        self.pairs = [(folder, number) for folder in folders for number in range(2, 7)][:max_pairs]
        self.metainfo: dict[str, Any] = dict(sequences=tuple(folder.name for folder in folders))

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        folder, number = self.pairs[index]
        homography = self._homography(folder / f'H_1_{number}')
        images, info, points, scales = {}, {}, {}, []
        for side, n in (('source', 1), ('target', number)):
            path = folder / f'{n}.ppm'
            image = read_image(path)
            scale = np.ones(2)
            if self.resize is not None:
                height, width = self.resize
                scale = np.array([width / image.shape[1], height / image.shape[0]])
                image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale.max() < 1 else cv2.INTER_LINEAR)
            scales.append(scale)
            images[side] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
            info.update({f'{side}_path': str(path), f'{side}_shape': image.shape[:2]})
            if self.keypoints is not None:
                points[f'{side}_points'] = self._points(self.keypoints / folder.name / f'{n}.npy', scale)
        # pixel centres are at whole numbers: scaling moves them by half a pixel
        into, back = _scaling(scales[1]), np.linalg.inv(_scaling(scales[0]))
        sample = PairSample(
            metainfo=dict(
                info, pair_id=index, homography=(into @ homography @ back).tolist(), sequence=folder.name,
                kind='illumination' if folder.name.startswith('i_') else 'viewpoint',
            )
        )  # fmt: skip
        for name, value in points.items():
            sample.set_field(value, name)
        return dict(inputs=images, data_samples=sample)

    @staticmethod
    def _homography(path: Path) -> np.ndarray:
        if not path.is_file():
            raise FileNotFoundError(f'{path} is not there: unpack hpatches-sequences-release.tar.gz again')
        try:
            return np.loadtxt(path).reshape(3, 3)
        except ValueError as error:
            raise ValueError(f'{path} holds no 3 × 3 numbers ({error})') from error

    @staticmethod
    def _points(path: Path, scale: np.ndarray) -> torch.Tensor:
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no keypoints of this image; expected an array (n, 2), x and y')
        found = np.load(path, allow_pickle=False)
        if found.ndim != 2 or found.shape[1] < 2:
            raise ValueError(f'{path} holds an array {found.shape}; expected (n, 2), x and y')
        return torch.from_numpy(((found[:, :2] + 0.5) * scale - 0.5).astype(np.float32))


def _scaling(scale: np.ndarray) -> np.ndarray:
    sx, sy = scale
    return np.array([[sx, 0, sx / 2 - 0.5], [0, sy, sy / 2 - 0.5], [0, 0, 1]])
