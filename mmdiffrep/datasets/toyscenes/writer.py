"""ToyScenes on disk, in the formats that the toolkits' own data set classes read.

::

    OUT/toyscenes.json                      how it was made
    OUT/images/{split}/000000.png           pictures
    OUT/annotations/{split}/000000.png      semantic labels (mmseg)
    OUT/annotations/panoptic_{split}.json   COCO panoptic, with panoptic_{split}/000000.png
    OUT/annotations/instances_{split}.json  COCO instances (RLE)
    OUT/annotations/captions_{split}.json   COCO captions
    OUT/annotations/labels_{split}.json     which classes are in each picture
    OUT/pairs/pairs.json, OUT/pairs/images  keypoint pairs between two views
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from .classes import SEMANTIC_CLASSES, STUFF, STUFF_ID, THING_ID, panoptic_categories
from .scene import Scene, generate_scene
from .views import generate_pair

FORMAT_VERSION = 1


def write_toyscenes(
    out: str | Path,
    counts: dict[str, int],
    size: tuple[int, int] = (128, 128),
    seed: int = 0,
    pairs: int = 0,
    workers: int = 0,
    overwrite: bool = False,
) -> Path:
    """Draw and write a data set. Done already with the same arguments: nothing is done.

    Args:
        counts: pictures a split, e.g. ``dict(train=2000, val=200, val_heldout=200)``.
        size: (height, width).
        pairs: keypoint pairs.
        workers: processes; 0 draws in this one.

    Raises:
        ValueError: the folder holds something else.
    """
    out = Path(out)
    made = dict(
        version=FORMAT_VERSION, counts=counts, size=list(size), seed=seed, pairs=pairs
    )
    if min([*counts.values(), pairs]) < 0 or not sum(counts.values()) + pairs:
        raise ValueError(f'nothing to draw: counts={counts}, pairs={pairs}; give at least one positive number')
    if _is_there(out, made, overwrite):
        print(f'ToyScenes: {out} is there already, made with these arguments')
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f'.{out.name}-', dir=out.parent))
    try:
        for split, count in counts.items():
            _write_split(temporary, split, count, size, seed, workers)
        if pairs:
            _write_pairs(temporary / 'pairs', pairs, size, seed)
        (temporary / 'toyscenes.json').write_text(json.dumps(made, indent=1))
        if out.exists():
            shutil.rmtree(out)
        temporary.chmod(0o755)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _is_there(out: Path, made: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds this very data set. ValueError if it holds something that must not be lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / 'toyscenes.json'
    if not record.is_file():
        raise ValueError(f'{out} is there and is not a ToyScenes folder; nothing is overwritten. Give another folder')
    if overwrite:
        return False
    if json.loads(record.read_text()) == made:
        return True
    raise ValueError(
        f'{out} is not empty and was not made with these arguments ({made}). Give another folder, or --overwrite'
    )


def _write_split(
    root: Path, split: str, count: int, size: tuple[int, int], seed: int, workers: int
) -> None:
    if not count:
        return
    for folder in ('images', 'annotations'):
        (root / folder / split).mkdir(parents=True)
    (root / 'annotations' / f'panoptic_{split}').mkdir()
    jobs = [(str(root), split, seed, index, size) for index in range(count)]
    with ProcessPoolExecutor(workers) if workers else _Here() as pool:
        records = list(
            tqdm(pool.map(_write_scene, jobs, chunksize=16), f'ToyScenes {split}', count, unit='pic')
        )
    images = [record['image'] for record in records]
    categories = panoptic_categories()
    things = [category for category in categories if category['isthing']]
    numbers = itertools.count(1)
    instances = [
        dict(annotation, id=next(numbers)) for record in records for annotation in record['instances']
    ]
    captions = [
        dict(id=record['image']['id'], image_id=record['image']['id'], caption=record['caption'])
        for record in records
    ]
    files = {
        f'panoptic_{split}.json': dict(
            images=images, categories=categories, annotations=[r['panoptic'] for r in records]
        ),
        f'instances_{split}.json': dict(images=images, categories=things, annotations=instances),
        f'captions_{split}.json': dict(images=images, annotations=captions),
        f'labels_{split}.json': {r['image']['file_name']: r['labels'] for r in records},
    }
    for name, content in files.items():
        (root / 'annotations' / name).write_text(json.dumps(content))


class _Here:
    """Runs in this process, with a pool's interface."""

    def __enter__(self) -> _Here:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def map(self, function: Any, jobs: Any, chunksize: int = 1) -> Any:
        return map(function, jobs)


def _write_scene(job: tuple[str, str, int, int, tuple[int, int]]) -> dict[str, Any]:
    root, split, seed, index, size = job
    cv2.setNumThreads(1)
    scene = generate_scene(seed, index, size, split)
    name = f'{index:06d}.png'
    folder = Path(root)
    write_png(folder / 'images' / split / name, scene.image[..., ::-1])
    write_png(folder / 'annotations' / split / name, scene.semantic())
    ids, segments = panoptic(scene)
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    write_png(folder / 'annotations' / f'panoptic_{split}' / name, rgb[..., ::-1])
    classes = [SEMANTIC_CLASSES[i] for i in np.unique(scene.semantic())]
    return dict(
        image=dict(id=index, file_name=name, height=size[0], width=size[1]),
        panoptic=dict(image_id=index, file_name=name, segments_info=segments),
        instances=_instances(scene, index),
        caption=scene.caption(),
        labels=dict(classes=classes, things=[thing.phrase for thing in scene.things]),
    )


def panoptic(scene: Scene) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids (H, W) int32, counted from 1, and COCO's ``segments_info``."""
    ids = np.zeros(scene.stuff.shape, np.int32)
    segments: list[dict[str, Any]] = []

    def add(mask: np.ndarray, category: int) -> None:
        if not mask.any():
            return
        ids[mask] = len(segments) + 1
        x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
        segments.append(
            dict(id=len(segments) + 1, category_id=category, area=int(mask.sum()), bbox=[x, y, w, h], iscrowd=0)
        )  # fmt: skip

    covered = np.zeros(scene.stuff.shape, bool)
    for thing in scene.things:
        covered |= thing.mask
    for index, name in enumerate(STUFF):
        add((scene.stuff == index) & ~covered, STUFF_ID[name])
    for thing in scene.things:
        add(thing.mask, THING_ID[thing.name])
    return ids, segments


def _instances(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    from pycocotools import mask as rle

    annotations = []
    for thing in scene.things:
        code = rle.encode(np.asfortranarray(thing.mask.astype(np.uint8)))
        code['counts'] = code['counts'].decode()
        annotations.append(
            dict(
                image_id=image_id, category_id=THING_ID[thing.name], segmentation=code, area=int(thing.mask.sum()),
                bbox=list(cv2.boundingRect(thing.mask.astype(np.uint8))), iscrowd=0,
                attributes=dict(pattern=thing.pattern, colour=thing.colour, shape=thing.shape),
            )
        )  # fmt: skip
    return annotations


def _write_pairs(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    (folder / 'images').mkdir(parents=True)
    records = []
    for index in tqdm(range(count), 'ToyScenes pairs', unit='pair'):
        pair = generate_pair(seed, index, size)
        names = [f'{index:06d}_{view}.png' for view in 'ab']
        for name, view in zip(names, pair.views):
            write_png(folder / 'images' / name, view.image[..., ::-1])
        a, b = pair.views
        for number, thing in enumerate(pair.scene.things):
            both = a.visible[number] & b.visible[number]
            if not both.any():
                continue
            boxes = [cv2.boundingRect(view.masks[number].astype(np.uint8)) for view in (a, b)]
            corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
            records.append(
                dict(
                    source=names[0], target=names[1], category=thing.shape, name=thing.phrase,
                    source_points=a.points[number][both].tolist(), target_points=b.points[number][both].tolist(),
                    point_ids=np.flatnonzero(both).tolist(), source_box=corners[0], target_box=corners[1],
                    homography=(pair.homographies[1] @ np.linalg.inv(pair.homographies[0])).tolist(),
                )
            )  # fmt: skip
    (folder / 'pairs.json').write_text(json.dumps(records))


def write_png(path: Path, array: np.ndarray) -> None:
    done, data = cv2.imencode('.png', array)
    if not done:
        raise ValueError(f'{path}: a PNG cannot hold an array of shape {array.shape}')
    with open(path, 'wb') as file:
        file.write(data.tobytes())
        file.flush()
    assert os.path.getsize(path) == data.size
