"""Ground truth from COCO's panoptic files: a JSON, and a PNG for each image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdiffrep.openvocab.coco_export import read_panoptic_png
from mmdiffrep.openvocab.names import clean, key
from mmdiffrep.openvocab.vocabulary import Vocabulary


class PanopticFiles:
    """Annotations by image id; a PNG is read when it is asked for.

    Raises:
        FileNotFoundError: no JSON, or no folder of PNGs.
        ValueError: it has no panoptic annotations, or an annotation's category is not in the file.
    """

    def __init__(self, ann_file: str | Path, seg_prefix: str | Path | None = None) -> None:
        self.ann_file = Path(ann_file)
        if not self.ann_file.is_file():
            raise FileNotFoundError(f'{ann_file}: no such file (COCO panoptic annotations)')
        self.folder = Path(seg_prefix) if seg_prefix else self.ann_file.with_suffix('')
        if not self.folder.is_dir():
            raise FileNotFoundError(
                f'{self.folder}: no such folder (PNGs of {ann_file}); give seg_prefix'
            )
        content = json.loads(self.ann_file.read_text(encoding='utf-8'))
        annotations = content.get('annotations', [])
        if not content.get('categories') or any('segments_info' not in a for a in annotations):
            raise ValueError(
                f'{ann_file} holds no panoptic annotations; needed: categories, and annotations with segments_info'
            )
        self.categories: dict[int, dict[str, Any]] = {c['id']: c for c in content['categories']}
        self._names = _names(content['categories'])
        self.annotations: dict[Any, dict[str, Any]] = {a['image_id']: a for a in annotations}
        for annotation in annotations:
            for segment in annotation['segments_info']:
                if segment.get('category_id') not in self.categories:
                    raise ValueError(
                        f'{ann_file}: segment {segment.get("id")} of {annotation["file_name"]} has category_id='
                        f"{segment.get('category_id')}, which is none of the file's {len(self.categories)} categories"
                    )

    def classes(self, places: Mapping[str, int]) -> dict[int, int | None]:
        """The class of each category, which shares a name with it; None if it is no class.

        Args:
            places: of :func:`place_by_name`.
        """
        return {
            id_: next((places[name] for name in names if name in places), None)
            for id_, names in self._names.items()
        }

    def truth(self, image_id: Any, places: Mapping[str, int]) -> dict[str, Any]:
        """``ids`` (H, W), ``segments`` with ``category``, the class's number; segments of no class are void.

        Args:
            places: of :func:`place_by_name`.
        """
        if image_id not in self.annotations:
            raise ValueError(
                f'{self.ann_file} has no annotation of image {image_id!r}; it has {len(self.annotations)}, such as '
                f'{list(self.annotations)[:3]}'
            )
        classes = self.classes(places)
        if all(place is None for place in classes.values()):
            raise ValueError(
                f'{self.ann_file}: none of its categories ({[c["name"] for c in self.categories.values()][:4]}, …) is a class '
                f'({list(places)[:4]}, …)'
            )
        annotation = self.annotations[image_id]
        ids = read_panoptic_png(self.folder / annotation['file_name'])
        segments, void = [], []
        for segment in annotation['segments_info']:
            place = classes[segment['category_id']]
            if place is None:
                void.append(segment['id'])
            else:
                crowd = segment.get('iscrowd', 0)
                segments.append(dict(id=segment['id'], category=place, iscrowd=crowd))
        if void:
            ids[np.isin(ids, void)] = 0
        return dict(ids=ids, segments=segments)


def place_by_name(classes: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of each name, as ``names.key`` compares names; of classes that share one, the first has it."""
    places: dict[str, int] = {}
    for place, names in enumerate(classes):
        for name in names:
            places.setdefault(key(name), place)
    return places


def numbers(names: Sequence[str], places: Mapping[str, int], what: str) -> list[int]:
    """The classes with these names, which may be a data set's own (``'wall-other-merged'``).

    Raises:
        ValueError: a name of no class.
    """
    found = [
        next((places[key(n)] for n in (name, *clean(name)) if key(n) in places), None)
        for name in names
    ]
    unknown = [name for name, place in zip(names, found) if place is None]
    if unknown:
        raise ValueError(
            f'{what} has {unknown[:5]}, which are not among the {len(set(places.values()))} classes ({list(places)[:4]}, …)'
        )
    return [place for place in found if place is not None]


def _names(categories: Sequence[Mapping[str, Any]]) -> dict[int, list[str]]:
    """What each category of a file may be called, by id: as it is written, and as vocabularies make words of it."""
    words = Vocabulary.parse([dict(category) for category in categories])
    return {
        category['id']: [key(category['name']), *map(key, words.categories[place].names)]
        for category, place in zip(categories, words.place)
    }
