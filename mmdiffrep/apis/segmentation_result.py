"""What is found in an image, and the files that say so."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmdiffrep.openvocab.coco_export import write_panoptic_json, write_panoptic_png
from mmdiffrep.openvocab.vocabulary import Vocabulary
from mmdiffrep.visualization.canvas import write_picture
from mmdiffrep.visualization.panoptic import draw_panoptic


@dataclass(eq=False)
class SegmentationResult:
    """What is found in an image.

    Attributes:
        ids: of the segments (H, W) int32, 0 where nothing is.
        segments: ``dict(id, category, name, isthing, score, area, bbox, seen)`` each: ``category`` is the place in ``vocabulary``,
            ``area`` in pixels, ``bbox`` [x, y, width, height] in pixels, ``seen`` whether the training had the class.
        vocabulary: what was asked for, things first.
        image: (H, W, 3) uint8 RGB.
        semantic: places in ``vocabulary`` (H, W) int64; None where the config leaves it out.
        instances: ``dict(scores (N,), labels (N,), masks (N, H, W) bool, bboxes (N, 4) x1, y1, x2, y2)``; None where it is left out.
        path: of the image; None for an array.
    """

    ids: np.ndarray = field(repr=False)
    segments: list[dict[str, Any]]
    vocabulary: Vocabulary = field(repr=False)
    image: np.ndarray = field(repr=False)
    semantic: np.ndarray | None = field(default=None, repr=False)
    instances: dict[str, np.ndarray] | None = field(default=None, repr=False)
    path: Path | None = None

    def picture(self, **options: Any) -> np.ndarray:
        """The image with its segments, RGB (h, w, 3) uint8; options of :func:`draw_panoptic`."""
        return draw_panoptic(self.image, self.ids, self.segments, **options)

    def mask(self, segment: int) -> np.ndarray:
        """The pixels (H, W) bool of a segment's id.

        Raises:
            ValueError: there is no such segment.
        """
        if segment not in [s['id'] for s in self.segments]:
            raise ValueError(
                f'no segment has id {segment}; there are {[s["id"] for s in self.segments]}'
            )
        return self.ids == segment

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays, ready for JSON."""
        classes = [
            dict(names=list(c.names), isthing=c.is_thing) for c in self.vocabulary.categories
        ]
        height, width = self.ids.shape
        return dict(
            image=str(self.path) if self.path is not None else None,
            height=height,
            width=width,
            vocabulary=classes,
            segments=self.segments,
        )


class ResultFolder:
    """Results as files; each appears complete or not at all, and replaces one of the same name.

    ``overlays/NAME.png`` (:func:`draw_panoptic`), ``segments/NAME.json`` (:meth:`SegmentationResult.to_dict`), and as COCO keeps them
    ``panoptic/NAME.png`` and, by :meth:`finish`, ``panoptic.json`` of all of this run. Its categories are numbered by their place in
    the vocabulary; where images have several vocabularies, from the first to the last, each name of one kind once.

    NAME is the image's without its ending, or ``array`` for an array; of several equal ones the later get ``-2``, ``-3``, ….
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f'{str(folder)!r} is a file; give a folder to write results into')
        self._names: set[str] = set()
        self._classes: dict[tuple[str, bool], int] = {}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(self, result: SegmentationResult) -> list[Path]:
        """Write an image's files; their paths."""
        name = self._name(result.path)
        overlay = self.folder / 'overlays' / f'{name}.png'
        described = self.folder / 'segments' / f'{name}.json'
        ids = self.folder / 'panoptic' / f'{name}.png'
        write_picture(overlay, result.picture())
        _write_json(described, result.to_dict())
        write_panoptic_png(ids, result.ids)
        self._note(result, ids.name)
        return [overlay, described, ids]

    def finish(self) -> Path:
        """Write ``panoptic.json``."""
        path = self.folder / 'panoptic.json'
        names, is_thing = zip(*self._classes) if self._classes else ((), ())
        write_panoptic_json(path, self._annotations, names, is_thing, images=self._images)
        return path

    def _name(self, path: Path | None) -> str:
        stem = path.stem if path is not None else 'array'
        name, number = stem, 1
        while name.lower() in self._names:  # some file systems do not tell cases apart
            number += 1
            name = f'{stem}-{number}'
        self._names.add(name.lower())
        return name

    def _note(self, result: SegmentationResult, file_name: str) -> None:
        """An image for ``panoptic.json``."""
        places = [
            self._classes.setdefault((c.name, c.is_thing), len(self._classes))
            for c in result.vocabulary.categories
        ]
        number, (height, width) = len(self._images) + 1, result.ids.shape
        shown = result.path.name if result.path is not None else file_name
        self._images.append(dict(id=number, file_name=shown, height=height, width=width))
        segments = [dict(s, category=places[s['category']]) for s in result.segments]
        self._annotations.append(dict(image_id=number, file_name=file_name, segments=segments))


def _write_json(path: Path, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1) + '\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f'.{path.name}.{os.getpid()}.new')
    try:
        new.write_text(text, encoding='utf-8')
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
